// Touches of memory, and the faults that they take.
#include "sim/kernel.h"

namespace uffda::sim {

const PageRef& zero_page() {
  static const PageRef kZeroes = std::make_shared<PageBytes>();
  return kZeroes;
}

Touched Process::touch(std::uint64_t address, Access wanted, const Store& store) {
  Touched touched;
  while (alive_) {
    point();
    UffdMode reason{};
    std::shared_ptr<Context::Fault> fault;
    mmap_lock_.lock_shared();
    const Step step = access(address, wanted, store, touched, reason);
    const std::shared_ptr<Context> uffd = step == Step::fault ? find(address)->uffd : nullptr;
    const bool sleeps = uffd && !uffd->has(UFFD_FEATURE_SIGBUS);
    if (sleeps) fault = uffd->queue_fault(address, reason, wanted);
    const bool must_wait = sleeps && uffd->must_wait(*fault);
    mmap_lock_.unlock_shared();
    if (step == Step::done) return touched;
    if (sleeps) uffd->sleep_in(fault, must_wait);
    if (!uffd || sleeps) continue;
    if (in_thread_ && in_thread_({align_down(address, kPage)}, wanted)) continue;
    touched.outcome = Touched::Outcome::sigbus;
    return touched;
  }
  touched.outcome = Touched::Outcome::killed;
  return touched;
}

Process::Step Process::access(std::uint64_t address, Access wanted, const Store& store, Touched& touched,
                              UffdMode& reason) {
  const auto ends = [&](Touched::Outcome outcome) {
    touched.outcome = outcome;
    return Step::done;
  };
  if (!alive_) return ends(Touched::Outcome::killed);
  const std::uint64_t page = align_down(address, kPage);
  const Vma* const vma = find(page);
  if (vma == nullptr || !vma->accessible) {
    touched.shows = nullptr;
    return ends(Touched::Outcome::segv);
  }
  touched.shows = vma->shows;
  touched.page = vma->index_of(page);
  if (vma->file && touched.page >= vma->file->pages()) return ends(Touched::Outcome::sigbus);
  const Pte::Kind kind = pte(page).kind;
  if (kind == Pte::Kind::poison) return ends(Touched::Outcome::sigbus);
  if (kind == Pte::Kind::none) return fault(*vma, page, wanted, reason);
  Pte& entry = table_[page];
  if (wanted == Access::write) {
    if (entry.protected_ && vma->armed(UffdMode::wp) && !vma->uffd->has(UFFD_FEATURE_WP_ASYNC)) {
      reason = UffdMode::wp;
      return Step::fault;
    }
    entry.protected_ = false;
    if (!vma->shared) {
      const bool copies = entry.kind == Pte::Kind::cached || entry.page == zero_page();
      if (copies) entry = {.kind = Pte::Kind::own, .page = std::make_shared<PageBytes>(*entry.page)};
      entry.written = true;
      entry.forked = false;
    }
    store(*entry.page);
  }
  touched.own_write = entry.written;
  touched.bytes = *entry.page;
  return ends(Touched::Outcome::ok);
}

Process::Step Process::fault(const Vma& vma, std::uint64_t page, Access wanted, UffdMode& reason) {
  const bool marked = pte(page).protected_ && vma.armed(UffdMode::wp);
  const bool cached = vma.file && vma.file->cache.contains(vma.index_of(page));
  reason = cached ? UffdMode::minor : UffdMode::missing;
  if (vma.armed(reason)) return Step::fault;
  Pte entry{.kind = Pte::Kind::own, .protected_ = marked};
  if (!vma.file) {
    entry.page = wanted == Access::read ? zero_page() : std::make_shared<PageBytes>();
  } else {
    PageRef& in_cache = vma.file->cache[vma.index_of(page)];
    if (!in_cache) in_cache = std::make_shared<PageBytes>();
    const bool copies = wanted == Access::write && !vma.shared;
    entry.kind = copies ? Pte::Kind::own : Pte::Kind::cached;
    entry.page = copies ? std::make_shared<PageBytes>(*in_cache) : in_cache;
  }
  table_[page] = std::move(entry);
  return Step::retry;
}

}  // namespace uffda::sim
