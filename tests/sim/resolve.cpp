// The simulated userfaultfd: what resolves faults, and registration. The order of checks is the kernel's.
#include <algorithm>
#include <cerrno>

#include "sim/kernel.h"

namespace uffda::sim {
namespace {

constexpr std::uint64_t kTaskSize = 0x7fff'ffff'f000;
constexpr std::uint64_t kDontWake = 1;  // the same bit in all of them but WRITEPROTECT
constexpr std::uint64_t kProtect = 2;   // in COPY and CONTINUE
constexpr UffdModes kAllModes{UffdMode::missing, UffdMode::wp, UffdMode::minor};

bool valid_range(Address start, ByteCount length) {
  return start.value % kPage == 0 && length.value % kPage == 0 && length.value != 0 && start.value < kTaskSize &&
         length.value <= kTaskSize - start.value;
}

constexpr Resolved refused() { return {.error = EINVAL, .field = std::nullopt}; }
constexpr Resolved event_unread() { return {.error = EAGAIN, .field = -EAGAIN}; }

}  // namespace

int Context::wake(Address start, ByteCount length) {
  const SystemCall entered;
  point();
  if (!valid_range(start, length)) return EINVAL;
  wake_range(start, length);
  return 0;
}

void Context::run_steps(const Vma& vma, Address start, ByteCount length, const PageStep& step, os::Progress& progress) {
  while (progress.error == 0 && progress.done < length) {
    if (progress.done.value != 0) point();
    const bool starved = random().one_in(Kernel::running().faults().no_memory_one_in);
    progress.error = starved              ? ENOMEM
                     : !process_->alive() ? ESRCH
                     : dying()            ? EINTR
                                          : step(vma, start.value + progress.done.value);
    if (progress.error == 0) progress.done += kPageSize;
  }
}

/// With the range and the mode checked.
Resolved Context::resolve(const char* name, Address start, ByteCount length, std::uint64_t mode, const PageStep& step) {
  if (!process_->alive()) return {.error = ESRCH, .field = std::nullopt};
  process_->mmap_lock_.lock_shared();
  os::Progress progress;
  const Vma* const vma = process_->alive() ? process_->find(start.value) : nullptr;
  if (vma == nullptr || vma->end() < start.value + length.value || !vma->uffd) {
    progress.error = ENOENT;
  } else if (changing_ != 0) {
    progress.error = EAGAIN;
  } else if ((mode & kProtect) != 0 && !vma->modes.has(UffdMode::wp)) {
    progress.error = EINVAL;
  } else {
    run_steps(*vma, start, length, step, progress);
  }
  process_->mmap_lock_.unlock_shared();
  return finish(name, start, length, mode, progress);
}

Resolved Context::finish(const char* name, Address start, ByteCount length, std::uint64_t mode, os::Progress progress) {
  trace("{} {:#x} + {}: {} done, errno {}", name, start.value, length.value / kPage, progress.done.value / kPage,
        progress.error);
  if (progress.done.value == 0) return {.error = progress.error, .field = -progress.error};
  if ((mode & kDontWake) == 0) wake_range(start, progress.done);
  return {.error = progress.error == 0 ? 0 : EAGAIN, .field = static_cast<std::int64_t>(progress.done.value)};
}

Resolved Context::continue_run(Address start, ByteCount length, std::uint64_t mode) {
  const SystemCall entered;
  point();
  if (changing_ != 0) return event_unread();
  if (!valid_range(start, length) || (mode & ~(kDontWake | kProtect)) != 0) return refused();
  return resolve("CONTINUE", start, length, mode, [&](const Vma& vma, std::uint64_t page) {
    if (!vma.file) return EINVAL;
    const auto cached = vma.file->cache.find(vma.index_of(page));
    if (cached == vma.file->cache.end() || vma.index_of(page) >= vma.file->pages()) return EFAULT;
    Pte& pte = process_->table_[page];
    if (!pte.vacant()) return EEXIST;
    pte = {.kind = Pte::Kind::cached, .protected_ = (mode & kProtect) != 0, .page = cached->second};
    return 0;
  });
}

Resolved Context::copy(Address to, std::span<const std::byte> from, ByteCount length, std::uint64_t mode) {
  const SystemCall entered;
  point();
  if (changing_ != 0) return event_unread();
  if (!valid_range(to, length) || (mode & ~(kDontWake | kProtect)) != 0) return refused();
  return resolve("COPY", to, length, mode, [&](const Vma& vma, std::uint64_t page) {
    const std::uint64_t at = page - to.value;
    if (at + kPage > from.size()) return EFAULT;
    auto bytes = std::make_shared<PageBytes>();
    std::memcpy(bytes->data(), from.data() + at, kPage);
    Pte fresh{.kind = Pte::Kind::own, .protected_ = (mode & kProtect) != 0, .page = bytes};
    const bool in_cache = vma.file && vma.shared;
    if (in_cache && vma.file->cache.contains(vma.index_of(page))) return EEXIST;
    Pte& pte = process_->table_[page];
    if (!pte.vacant()) return EEXIST;
    if (in_cache) {
      fresh.kind = Pte::Kind::cached;
      vma.file->cache[vma.index_of(page)] = std::move(bytes);
    }
    pte = std::move(fresh);
    return 0;
  });
}

Resolved Context::zeropage(Address start, ByteCount length, std::uint64_t mode) {
  const SystemCall entered;
  point();
  if (changing_ != 0) return event_unread();
  if (!valid_range(start, length) || (mode & ~kDontWake) != 0) return refused();
  return resolve("ZEROPAGE", start, length, mode, [&](const Vma& vma, std::uint64_t page) {
    Pte& pte = process_->table_[page];
    if (vma.file && vma.shared) {
      PageRef& cached = vma.file->cache[vma.index_of(page)];
      if (cached || !pte.vacant()) return EEXIST;
      cached = std::make_shared<PageBytes>();
      pte = {.kind = Pte::Kind::cached, .page = cached};
    } else {
      if (!pte.empty()) return EEXIST;
      pte = {.kind = Pte::Kind::own, .page = zero_page()};
    }
    return 0;
  });
}

Resolved Context::poison(Address start, ByteCount length, std::uint64_t mode) {
  const SystemCall entered;
  point();
  if (changing_ != 0) return event_unread();
  if (!valid_range(start, length) || (mode & ~kDontWake) != 0) return refused();
  return resolve("POISON", start, length, mode, [&](const Vma& vma, std::uint64_t page) {
    if (vma.file && vma.index_of(page) >= vma.file->pages()) return EFAULT;
    Pte& pte = process_->table_[page];
    if (!pte.empty()) return EEXIST;
    pte = {.kind = Pte::Kind::poison};
    return 0;
  });
}

int Context::can_move(const Vma* to, const Vma* from, Address to_end, Address from_end) const {
  if (to == nullptr || from == nullptr) return ENOENT;
  if (changing_ != 0) return EAGAIN;
  const bool whole = from_end.value <= from->end() && to_end.value <= to->end();
  const bool own = !from->file && !to->file && from->accessible && to->accessible;
  return whole && own && to->uffd.get() == this ? 0 : EINVAL;
}

Resolved Context::move(Address to, Address from, ByteCount length, std::uint64_t mode) {
  const SystemCall entered;
  point();
  if (changing_ != 0) return event_unread();
  if (!valid_range(to, length) || !valid_range(from, length)) return refused();
  if ((mode & ~(kDontWake | std::uint64_t{UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES})) != 0) return refused();
  if (!process_->alive()) return {.error = ESRCH, .field = std::nullopt};
  process_->mmap_lock_.lock_shared();
  const Vma* const target = process_->find(to.value);
  os::Progress progress{.done = {}, .error = can_move(target, process_->find(from.value), to + length, from + length)};
  if (progress.error == 0) {
    run_steps(
        *target, to, length,
        [&](const Vma&, std::uint64_t page) {
          if (!process_->pte(page).empty()) return EEXIST;
          const std::uint64_t source = from.value + (page - to.value);
          const Pte moved = process_->pte(source);
          if (moved.empty()) return (mode & UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES) != 0 ? 0 : ENOENT;
          if (moved.vacant()) return EFAULT;  // a marker
          if (moved.forked && moved.page != zero_page()) return EBUSY;
          process_->table_.erase(source);
          process_->table_[page] = {.kind = Pte::Kind::own, .written = moved.written, .page = moved.page};
          return 0;
        },
        progress);
  }
  process_->mmap_lock_.unlock_shared();
  return finish("MOVE", to, length, mode, progress);
}

void Context::protect(const Vma& vma, std::uint64_t page, bool protects) {
  const Pte now = process_->pte(page);
  if (now.kind == Pte::Kind::poison) return;
  const bool marks = vma.file || has(UFFD_FEATURE_WP_UNPOPULATED) || has(UFFD_FEATURE_WP_ASYNC);
  if (now.kind != Pte::Kind::none || (protects && marks)) {
    process_->table_[page].protected_ = protects;
  } else if (!protects) {
    process_->table_.erase(page);
  }
}

int Context::writeprotect(Address start, ByteCount length, std::uint64_t mode) {
  const SystemCall entered;
  constexpr std::uint64_t kModes = UFFDIO_WRITEPROTECT_MODE_WP | UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  point();
  if (changing_ != 0) return EAGAIN;
  if (!valid_range(start, length) || (mode & ~kModes) != 0 || mode == kModes) return EINVAL;
  if (!process_->alive()) return ESRCH;
  const bool protects = (mode & UFFDIO_WRITEPROTECT_MODE_WP) != 0;
  const std::uint64_t end = start.value + length.value;
  process_->mmap_lock_.lock_shared();
  int error = changing_ != 0 ? EAGAIN : ENOENT;
  for (std::uint64_t at = start.value; error != EAGAIN && at < end;) {
    const Vma* const vma = process_->find_from(at);
    if (vma == nullptr || vma->start >= end) break;
    error = vma->armed(UffdMode::wp) ? 0 : ENOENT;
    if (error != 0) break;
    for (at = std::max(at, vma->start); at < std::min(end, vma->end()); at += kPage) {
      protect(*vma, at, protects);
      point();
    }
  }
  process_->mmap_lock_.unlock_shared();
  note(Moment::protected_);
  trace("WRITEPROTECT {:#x} + {} ({}): errno {}", start.value, length.value / kPage, protects ? "on" : "off", error);
  if (error == 0 && mode == 0) wake_range(start, length);
  return error;
}

int Context::scan_written(Address start, ByteCount length, bool protects_again, std::vector<std::uint64_t>& pages) {
  const SystemCall entered;
  point();
  const std::uint64_t end = start.value + length.value;
  int error = 0;
  process_->mmap_lock_.lock_shared();
  for (std::uint64_t at = start.value; error == 0 && at < end;) {
    const Vma* const vma = process_->find_from(at);
    if (vma == nullptr || vma->start >= end) break;
    error = vma->armed(UffdMode::wp) && vma->uffd->has(UFFD_FEATURE_WP_ASYNC) ? 0 : EPERM;
    for (at = std::max(at, vma->start); error == 0 && at < std::min(end, vma->end()); at += kPage) {
      if (process_->pte(at).protected_) continue;
      pages.push_back(at);
      if (protects_again) process_->table_[at].protected_ = true;
      point();
    }
  }
  process_->mmap_lock_.unlock_shared();
  return error;
}

int Context::can_register(Address start, ByteCount length, UffdModes modes) const {
  bool found = false;
  for (const auto& [at, vma] : process_->vmas_) {
    if (vma.end() <= start.value || vma.start >= start.value + length.value) continue;
    found = true;
    if (modes.has(UffdMode::minor) && !vma.file) return EINVAL;
    if (vma.uffd && vma.uffd.get() != this) return EBUSY;
  }
  return found ? 0 : EINVAL;
}

int Context::register_range(Address start, ByteCount length, std::uint64_t mode, std::uint64_t& ioctls) {
  const SystemCall entered;
  const UffdModes modes = UffdModes::from_bits(mode);
  if (mode == 0 || (mode & ~kAllModes.bits()) != 0 || !valid_range(start, length)) return EINVAL;
  process_->mmap_lock_.lock();
  const int error = can_register(start, length, modes);
  if (error == 0) {
    const std::uint64_t end = start.value + length.value;
    process_->split_at(start.value);
    process_->split_at(end);
    for (auto& [at, vma] : process_->vmas_) {
      if (at < start.value || at >= end || (vma.uffd && vma.modes.has_all(modes))) continue;
      vma.uffd = process_->context();
      vma.modes = modes;
    }
    process_->merge(start.value, end);
  }
  process_->mmap_lock_.unlock();
  ioctls = UFFD_API_RANGE_IOCTLS | std::uint64_t{1} << _UFFDIO_POISON | std::uint64_t{1} << _UFFDIO_MOVE;
  if (!modes.has(UffdMode::wp)) ioctls &= ~(std::uint64_t{1} << _UFFDIO_WRITEPROTECT);
  if (!modes.has(UffdMode::minor)) ioctls &= ~(std::uint64_t{1} << _UFFDIO_CONTINUE);
  return error;
}

int Context::unregister_range(Address start, ByteCount length) {
  const SystemCall entered;
  if (!valid_range(start, length)) return EINVAL;
  const std::uint64_t end = start.value + length.value;
  process_->mmap_lock_.lock();
  int error = EINVAL;
  for (const auto& [at, vma] : process_->vmas_) {
    if (vma.end() <= start.value || vma.start >= end) continue;
    error = vma.uffd && vma.uffd.get() != this ? EINVAL : 0;
    if (error != 0) break;
  }
  if (error == 0) {
    process_->split_at(start.value);
    process_->split_at(end);
    for (auto& [at, vma] : process_->vmas_) {
      if (at < start.value || at >= end || !vma.uffd) continue;
      for (std::uint64_t page = vma.start; vma.armed(UffdMode::wp) && page < vma.end(); page += kPage)
        protect(vma, page, false);
      if (vma.armed(UffdMode::missing)) wake_range({vma.start}, {vma.length});
      vma.uffd = nullptr;
      vma.modes = {};
    }
    process_->merge(start.value, end);
  }
  process_->mmap_lock_.unlock();
  return error;
}

}  // namespace uffda::sim
