// Files, mappings and page tables, and what a process does to them. Faults are in fault.cpp, userfaultfd in
// userfault.cpp and resolve.cpp.
#include "sim/kernel.h"

#include <algorithm>
#include <cerrno>

namespace uffda::sim {
namespace {

constexpr int kFirstFd = 1 << 20;  // no real descriptor is so high: closing one is EBADF
constexpr int kFirstContextFd = 1 << 21;
Kernel* the_kernel = nullptr;

}  // namespace

void KernelLock::lock() {
  while (written_ || readers_ != 0) changed_.wait();
  written_ = true;
}
void KernelLock::unlock() {
  written_ = false;
  changed_.wake_all();
}
void KernelLock::lock_shared() {
  while (written_) changed_.wait();
  ++readers_;
}
void KernelLock::unlock_shared() {
  if (--readers_ == 0) changed_.wake_all();
}

Kernel::Kernel(const KernelFaults& faults) : faults_(faults) { the_kernel = this; }
Kernel::~Kernel() { the_kernel = nullptr; }
Kernel& Kernel::running() { return *the_kernel; }

std::shared_ptr<Process> Kernel::start_process() {
  processes_.push_back(std::make_shared<Process>(*this, static_cast<unsigned>(processes_.size())));
  return processes_.back();
}

std::shared_ptr<Process> Kernel::process_at(std::uint64_t start, std::uint64_t length) const {
  const auto at =
      std::ranges::find_if(processes_, [&](const auto& process) { return process->maps_any(start, length); });
  return at == processes_.end() ? nullptr : *at;
}

std::shared_ptr<Context> Kernel::open_userfault(Process& process, std::uint64_t features) {
  contexts_.push_back(
      std::make_shared<Context>(process, features, kFirstContextFd + static_cast<int>(contexts_.size())));
  return contexts_.back();
}

std::shared_ptr<Context> Kernel::context(int fd) const {
  const auto at = static_cast<std::size_t>(fd - kFirstContextFd);
  return fd >= kFirstContextFd && at < contexts_.size() ? contexts_[at] : nullptr;
}

std::shared_ptr<File> Kernel::create_file(const std::string& name, ByteCount size) {
  auto file = std::make_shared<File>();
  file->fd = kFirstFd + static_cast<int>(files_.size());
  file->size = size;
  file->name = name;
  files_.push_back(file);
  return file;
}

std::shared_ptr<File> Kernel::file(int fd) const {
  const auto at = static_cast<std::size_t>(fd - kFirstFd);
  return fd >= kFirstFd && at < files_.size() ? files_[at] : nullptr;
}

int Kernel::write(File& file, std::uint64_t offset, std::span<const std::byte> bytes) {
  const SystemCall entered;
  point();
  while (!bytes.empty()) {
    if (dying() && random().one_in(2)) return EINTR;
    note(Moment::cache_written);
    const std::uint64_t page = offset / kPage;
    if (random().one_in(faults_.write_fails_one_in)) {
      trace("write of page {} of {}: no space", page, file.name);
      for (std::uint64_t i = page; i * kPage < offset + bytes.size(); ++i) {
        if (refused_) refused_(file, i);
      }
      return ENOSPC;
    }
    const std::size_t part = std::min<std::size_t>(kPage - offset % kPage, bytes.size());
    // A page is copied with its folio locked: whole, for whoever does not have it mapped already.
    PageRef& cached = file.cache[page];
    if (cached == nullptr) {
      auto fresh = std::make_shared<PageBytes>();
      std::memcpy(fresh->data() + offset % kPage, bytes.data(), part);
      cached = std::move(fresh);
    } else {
      const PageRef kept = cached;
      std::memcpy(kept->data() + offset % kPage, bytes.data(), part / 2);
      point();
      std::memcpy(kept->data() + offset % kPage + part / 2, bytes.data() + part / 2, part - part / 2);
    }
    offset += part;
    bytes = bytes.subspan(part);
    point();
  }
  return 0;
}

void Kernel::read(const File& file, std::uint64_t offset, std::span<std::byte> bytes) const {
  const SystemCall entered;
  while (!bytes.empty()) {
    point();
    const std::size_t part = std::min<std::size_t>(kPage - offset % kPage, bytes.size());
    const auto at = file.cache.find(offset / kPage);
    if (at == file.cache.end()) {
      std::memset(bytes.data(), 0, part);
    } else {
      std::memcpy(bytes.data(), at->second->data() + offset % kPage, part);
    }
    offset += part;
    bytes = bytes.subspan(part);
  }
}

void Kernel::punch(File& file, std::uint64_t first_page, std::uint64_t end_page) {
  const SystemCall entered;
  for (std::uint64_t page = first_page; page < end_page; ++page) {
    point();
    if (dying() && random().one_in(2)) return;
    note(Moment::cache_punched);
    const auto at = file.cache.find(page);
    if (at == file.cache.end()) continue;
    const PageRef gone = at->second;
    file.cache.erase(at);
    for (const auto& process : processes_) {
      std::vector<std::uint64_t> mapped;
      for (const auto& [address, pte] : process->table_) {
        if (pte.kind == Pte::Kind::cached && pte.page == gone) mapped.push_back(address);
      }
      for (const std::uint64_t address : mapped) process->discard(address);
    }
  }
}

void Kernel::pollute(File& file, std::uint64_t page) {
  point();
  PageRef& cached = file.cache[page];
  if (cached != nullptr) return;
  trace("touches page {} of {} through a mapping that nobody registered: a zero page", page, file.name);
  cached = std::make_shared<PageBytes>();
}

Vma* Process::find(std::uint64_t address) {
  auto at = vmas_.upper_bound(address);
  if (at == vmas_.begin()) return nullptr;
  --at;
  return address < at->second.end() ? &at->second : nullptr;
}

const Vma* Process::find_from(std::uint64_t address) const {
  const auto at = std::ranges::find_if(vmas_, [&](const auto& entry) { return entry.second.end() > address; });
  return at == vmas_.end() ? nullptr : &at->second;
}

Pte Process::pte(std::uint64_t page) const {
  const auto at = table_.find(page);
  return at == table_.end() ? Pte{} : at->second;
}

void Process::split_at(std::uint64_t address) {
  Vma* const vma = find(address);
  if (vma == nullptr || vma->start == address) return;
  Vma after = *vma;
  after.offset += address - vma->start;
  after.start = address;
  after.length = vma->end() - address;
  vma->length = address - vma->start;
  vmas_[address] = std::move(after);
}

void Process::merge(std::uint64_t start, std::uint64_t end) {
  const auto continues = [](const Vma& a, const Vma& b) {
    return a.end() == b.start && a.file == b.file && a.offset + a.length == b.offset && a.shared == b.shared &&
           a.accessible == b.accessible && a.uffd == b.uffd && a.modes == b.modes && a.shows == b.shows;
  };
  auto at = vmas_.lower_bound(start);
  if (at != vmas_.begin()) --at;
  while (at != vmas_.end()) {
    const auto next = std::next(at);
    if (next == vmas_.end() || next->second.start > end) return;
    if (continues(at->second, next->second)) {
      at->second.length += next->second.length;
      vmas_.erase(next);
    } else {
      at = next;
    }
  }
}

void Process::cut(std::uint64_t start, std::uint64_t end) {
  split_at(start);
  split_at(end);
  vmas_.erase(vmas_.lower_bound(start), vmas_.lower_bound(end));
}

void Process::zap(std::uint64_t start, std::uint64_t end) {
  table_.erase(table_.lower_bound(start), table_.lower_bound(end));
}

/// A page of a file that was protected stays so: a marker takes its place.
void Process::discard(std::uint64_t page) {
  const Vma* const vma = find(page);
  const bool marked = vma != nullptr && vma->file && vma->armed(UffdMode::wp) && pte(page).protected_;
  table_.erase(page);
  if (marked) table_[page] = {.protected_ = true};
}

void Process::mmap(Vma vma) {
  mmap_lock_.lock();
  const std::uint64_t start = vma.start;
  const std::uint64_t length = vma.length;
  const bool tells = watched(start, length, UFFD_FEATURE_EVENT_UNMAP);
  if (tells) context_->raise();
  cut(start, vma.end());
  zap(start, vma.end());
  trace("mmap {:#x} + {} pages", start, length / kPage);
  vmas_[start] = std::move(vma);
  mmap_lock_.unlock();
  if (tells) send_unmap(start, length);
}

bool Process::maps_any(std::uint64_t start, std::uint64_t length) const {
  return std::ranges::any_of(
      vmas_, [&](const auto& entry) { return entry.second.start < start + length && start < entry.second.end(); });
}

/// Whether somebody hears of what happens there.
bool Process::watched(std::uint64_t start, std::uint64_t length, std::uint64_t feature) const {
  return std::ranges::any_of(vmas_, [&](const auto& entry) {
    const Vma& vma = entry.second;
    return vma.start < start + length && start < vma.end() && vma.uffd && vma.uffd->has(feature);
  });
}

void Process::send_unmap(std::uint64_t start, std::uint64_t length) {
  Context::Event event;
  event.message.event = UFFD_EVENT_UNMAP;
  event.message.arg.remove.start = start;
  event.message.arg.remove.end = start + length;
  context_->send(std::move(event));
}

void Process::make_accessible(std::uint64_t start) {
  mmap_lock_.lock();
  if (Vma* const vma = find(start); vma != nullptr) vma->accessible = true;
  mmap_lock_.unlock();
}

void Process::munmap(std::uint64_t start, std::uint64_t length) {
  mmap_lock_.lock();
  const bool tells = watched(start, length, UFFD_FEATURE_EVENT_UNMAP);
  trace("munmap {:#x} + {} pages", start, length / kPage);
  if (tells) context_->raise();
  cut(start, start + length);
  zap(start, start + length);
  mmap_lock_.unlock();
  point();
  if (tells) send_unmap(start, length);
}

bool Process::mremap(std::uint64_t from, std::uint64_t to, std::uint64_t length) {
  mmap_lock_.lock();
  const Vma* vma = find(from);
  if (vma == nullptr || vma->end() < from + length || find(to) != nullptr) {
    mmap_lock_.unlock();
    return false;
  }
  trace("mremap {:#x} + {} pages to {:#x}", from, length / kPage, to);
  const bool tells = watched(from, length, UFFD_FEATURE_EVENT_REMAP);
  const bool tells_unmap = watched(from, length, UFFD_FEATURE_EVENT_UNMAP);
  Vma moved = *vma;
  if (tells) context_->raise();
  if (tells_unmap) context_->raise();
  moved.offset += from - vma->start;
  moved.start = to;
  moved.length = length;
  if (!tells) moved.uffd = nullptr;
  cut(from, from + length);
  vmas_[to] = std::move(moved);
  for (std::uint64_t page = 0; page < length; page += kPage) {
    const auto at = table_.find(from + page);
    if (at == table_.end()) continue;
    table_[to + page] = at->second;
    table_.erase(at);
  }
  mmap_lock_.unlock();
  point();
  if (tells) {
    Context::Event event;
    event.message.event = UFFD_EVENT_REMAP;
    event.message.arg.remap.from = from;
    event.message.arg.remap.to = to;
    event.message.arg.remap.len = length;
    context_->send(std::move(event));
  }
  if (tells_unmap) send_unmap(from, length);
  return true;
}

void Process::madvise_dontneed(std::uint64_t start, std::uint64_t length) {
  trace("madvise(DONTNEED) {:#x} + {} pages", start, length / kPage);
  mmap_lock_.lock_shared();
  for (std::uint64_t at = start; at < start + length;) {
    const Vma* const vma = find_from(at);
    if (vma == nullptr || vma->start >= start + length) break;
    at = std::max(at, vma->start);
    const std::uint64_t end = std::min(start + length, vma->end());
    if (const auto uffd = vma->uffd; uffd && uffd->has(UFFD_FEATURE_EVENT_REMOVE)) {
      // Told of before it happens.
      uffd->raise();
      mmap_lock_.unlock_shared();
      Context::Event event;
      event.message.event = UFFD_EVENT_REMOVE;
      event.message.arg.remove.start = at;
      event.message.arg.remove.end = end;
      uffd->send(std::move(event));
      mmap_lock_.lock_shared();
    }
    for (; at < end; at += kPage) {
      discard(at);
      point();
    }
  }
  mmap_lock_.unlock_shared();
}

std::shared_ptr<Process> Process::fork(const std::function<void(const std::shared_ptr<Process>&)>& born) {
  mmap_lock_.lock();
  const std::shared_ptr<Process> child = kernel_.start_process();
  trace("fork: process {}", child->id());
  const bool tells = context_ && context_->has(UFFD_FEATURE_EVENT_FORK);
  if (tells) {
    context_->raise();
    child->context_ = kernel_.open_userfault(*child, context_->features());
  }
  for (const auto& [start, vma] : vmas_) {
    Vma copy = vma;
    copy.uffd = tells && vma.uffd ? child->context_ : nullptr;
    if (copy.shows) copy.shows = std::make_shared<Shows>(*copy.shows);
    child->vmas_[start] = std::move(copy);
    // Page tables are copied only where a page is the process's own.
    const auto first = table_.lower_bound(vma.start);
    const auto last = table_.lower_bound(vma.end());
    if (std::none_of(first, last, [](const auto& entry) { return entry.second.kind == Pte::Kind::own; })) continue;
    for (auto at = first; at != last; ++at) {
      at->second.forked = at->second.kind == Pte::Kind::own;
      Pte pte = at->second;
      pte.protected_ = pte.protected_ && tells;
      if (pte.kind == Pte::Kind::own) pte.page = std::make_shared<PageBytes>(*pte.page);
      child->table_[at->first] = std::move(pte);
    }
  }
  born(child);
  mmap_lock_.unlock();
  if (!tells) return child;
  Context::Event event;
  event.message.event = UFFD_EVENT_FORK;
  event.child = child->context_;
  context_->send(std::move(event));
  return child;
}

void Process::exit() {
  trace("process {} exits", id_);
  alive_ = false;
  table_.clear();
  vmas_.clear();
  if (!context_) return;
  for (const auto& fault : std::exchange(context_->pending_, {})) fault->waiting.wake_all();
  for (const auto& event : context_->events_) {
    event->read = true;
    event->waiting.wake_all();
  }
  context_->events_.clear();
  context_->changing_ = 0;
  for (const auto& fault : std::exchange(context_->delivered_, {})) fault->waiting.wake_all();
}

}  // namespace uffda::sim
