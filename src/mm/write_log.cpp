#include "mm/write_log.h"

#include <algorithm>
#include <bit>

#include "base/thread.h"
#include "mm/memory_object.h"

namespace uffda {
namespace {

constexpr Duration kPinRecheck = std::chrono::microseconds(100);
constexpr Duration kPinPatience = std::chrono::milliseconds(500);  // a pin lasts for one step
constexpr Duration kProtectAgain = std::chrono::milliseconds(1);   // what keeps it from being protected does not signal

/// Adds to ascending ranges.
void append(std::vector<FolioRange>& ranges, FolioIndex index) {
  if (!ranges.empty() && ranges.back().end() == index) {
    ++ranges.back().count;
  } else {
    ranges.push_back({.first = index, .count = 1});
  }
}

/// Calls with the index of each bit of a word, ascending.
template <typename Call>
void each_bit(std::uint64_t bits, FolioIndex first, const Call& call) {
  for (; bits != 0; bits &= bits - 1) call(first + static_cast<unsigned>(std::countr_zero(bits)));
}

}  // namespace

WriteLog::WriteLog(MemoryObject& object) : object_(object), words_(align_up(object.folios(), kBits) / kBits) {}

Result<void> WriteLog::start(Deadline deadline) {
  // Whoever looked before whether there is a log has his folio pinned until its protection is gone.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const FolioStates& states = object_.states();
  for (FolioIndex i = 0; i < states.count(); ++i) {
    if (states.pinned(i) || states.unwritten(i)) note(i);
  }
  UFFDA_TRY(collect(deadline));
  return {};
}

bool WriteLog::stays_pinned(FolioIndex index) const {
  if (!object_.states().pinned(index) || canary(Canary::logged_despite_pins)) [[likely]]
    return false;
  for (const Deadline soon = Deadline::after(kPinPatience); object_.states().pinned(index);) {
    if (soon.passed()) return true;
    this_thread::sleep_for(kPinRecheck);
  }
  return false;
}

Result<void> WriteLog::protect_again(FolioRange run, Deadline deadline) {
  while (object_.protect(run) != FolioMapper::Protected::done) {
    if (deadline.passed()) return fail(Errc::timed_out, object_.name() + ": a program could not be kept from writing");
    this_thread::sleep_for(kProtectAgain);
  }
  return {};
}

void WriteLog::note_all(const std::vector<FolioRange>& ranges) noexcept {
  for (const FolioRange& range : ranges) {
    for (FolioIndex i = range.first; i < range.end(); ++i) note(i);
  }
}

Result<std::vector<FolioRange>> WriteLog::collect(Deadline deadline) {
  std::vector<FolioRange> found;
  for (std::size_t word = 0; word < words_.size(); ++word) {
    if (words_[word].load(std::memory_order_relaxed) == 0) continue;
    const std::uint64_t taken = words_[word].exchange(0, std::memory_order_acq_rel);
    preemption_point();
    std::vector<FolioRange> unpinned;
    each_bit(taken, word * kBits, [&](FolioIndex index) {
      append(found, index);
      if (stays_pinned(index)) {
        note(index);
      } else {
        append(unpinned, index);
      }
    });
    for (const FolioRange& run : unpinned) {
      const Result<void> done = protect_again(run, deadline);
      if (done) continue;
      note_all(found);
      return std::unexpected(done.error());
    }
  }
  return found;
}

std::vector<FolioRange> WriteLog::peek() const {
  std::vector<FolioRange> found;
  for (std::size_t word = 0; word < words_.size(); ++word) {
    each_bit(words_[word].load(std::memory_order_acquire), word * kBits,
             [&](FolioIndex index) { append(found, index); });
  }
  return found;
}

}  // namespace uffda
