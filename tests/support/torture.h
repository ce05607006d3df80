// Threads, of one process or several, that write, read and sync one memory which goes to a file, with a model of what
// each of its words may be. Without GoogleTest, for the programs of tests/clients use it, too.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "support/plain_words.h"
#include "support/test_support.h"
#include "uffda/units.h"

namespace uffda::test {

/// Word i of the memory belongs to writer i % kTortureWriters: all of them write to each page.
inline constexpr std::uint64_t kTortureWriters = 16;
inline constexpr std::uint64_t kTorturePages = 2048;
inline constexpr std::uint64_t kTorturePageWords = kPageSize.value / sizeof(std::uint64_t);
inline constexpr std::uint64_t kTortureWords = kTorturePages * kTorturePageWords;
inline constexpr std::uint64_t kTortureSize = kTorturePages * kPageSize.value;

/// The versions of a word are counted: `started` before one is written, `finished` after it. In memory of its own, that
/// processes may share.
struct TortureWord {
  std::atomic<std::uint32_t> started;
  std::atomic<std::uint32_t> finished;
};

/// Every version of every word is another value.
inline std::uint64_t torture_value(std::uint64_t index, std::uint32_t version) {
  if (version != 0) return index << 32U | version;
  std::uint64_t first = 0;
  Pattern::fill(std::as_writable_bytes(std::span(&first, 1)), index * sizeof first);
  return first;
}

class TortureWriter {
 public:
  struct Job {
    std::uint64_t me = 0;  ///< of kTortureWriters
    std::uint64_t steps = 0;
    std::uint64_t seed = 0;
    std::uint64_t* words = nullptr;       ///< the memory
    std::span<TortureWord> model;         ///< kTortureWords
    int file = -1;                        ///< that the memory goes to
    std::function<bool(ByteRange)> sync;  ///< until it succeeds; false: it cannot
  };
  explicit TortureWriter(Job job) : job_(std::move(job)), random_(job_.seed * kTortureWriters + job_.me) {}

  /// What went wrong first; empty: nothing.
  std::string run() {
    for (std::uint64_t step = 0; step < job_.steps && wrong_.empty(); ++step) {
      if (random_() % kMoves == 0) window_ = random_() % (kTorturePages - kWindow);
      const std::uint64_t what = random_() % kSyncs;
      if (what == 0) {
        sync();
      } else if (what % 4 == 1) {
        read_of_another();
      } else if (what % 4 == 2) {
        read_own();
      } else {
        write();
      }
    }
    return wrong_;
  }

  /// Nobody writes any more: all that the memory holds is the newest.
  static std::string check_all(const std::uint64_t* words, std::span<const TortureWord> model) {
    for (std::uint64_t i = 0; i < kTortureWords; ++i) {
      const std::uint64_t found = load_plain(words + i);
      const std::uint32_t newest = model[i].finished.load(std::memory_order_acquire);
      if (found != torture_value(i, newest)) return says("at the end", i, found, newest, newest);
    }
    return {};
  }

 private:
  static constexpr std::uint64_t kSyncs = 256;   // steps, about, to one sync
  static constexpr std::uint64_t kMoves = 256;   // and to one move of the window
  static constexpr std::uint64_t kWindow = 64;   // pages that most steps are in
  static constexpr std::uint64_t kAllSyncs = 8;  // syncs to one of everything

  static std::string says(const char* where, std::uint64_t index, std::uint64_t found, std::uint32_t low,
                          std::uint32_t high) {
    std::ostringstream text;
    text << where << ": word " << index << " (page " << index / kTorturePageWords << ", of writer "
         << index % kTortureWriters << ") is " << std::hex << found << ", not a version of " << std::dec << low
         << " to " << high;
    return text.str();
  }
  std::uint64_t some_page() { return random_() % 4 == 0 ? random_() % kTorturePages : window_ + random_() % kWindow; }
  std::uint64_t some_word(std::uint64_t writer) {
    const std::uint64_t in_page = random_() % (kTorturePageWords / kTortureWriters) * kTortureWriters + writer;
    return some_page() * kTorturePageWords + in_page;
  }

  void write() {
    const std::uint64_t index = some_word(job_.me);
    const std::uint32_t version = job_.model[index].started.load(std::memory_order_relaxed) + 1;
    job_.model[index].started.store(version, std::memory_order_seq_cst);
    store_plain(job_.words + index, torture_value(index, version));
    job_.model[index].finished.store(version, std::memory_order_seq_cst);
  }
  void read_own() {
    const std::uint64_t index = some_word(job_.me);
    const std::uint32_t version = job_.model[index].started.load(std::memory_order_relaxed);
    const std::uint64_t found = load_plain(job_.words + index);
    if (found != torture_value(index, version)) wrong_ = says("own", index, found, version, version);
  }
  /// It is no older than what was finished before, and no newer than what was started since.
  void read_of_another() {
    const std::uint64_t index = some_word(random_() % kTortureWriters);
    const std::uint32_t low = job_.model[index].finished.load(std::memory_order_seq_cst);
    const std::uint64_t found = load_plain(job_.words + index);
    const std::uint32_t high = job_.model[index].started.load(std::memory_order_seq_cst);
    if (low == 0 && found == torture_value(index, 0)) return;
    const std::uint64_t version = found & 0xFFFFFFFFU;
    if (found >> 32U == index && version >= std::max(low, 1U) && version <= high) return;
    wrong_ = says("another's", index, found, low, high);
  }

  void sync() {
    std::uint64_t first = 0;
    std::uint64_t count = kTorturePages;
    if (random_() % kAllSyncs != 0) {
      first = some_page();
      count = 1 + random_() % std::min(kWindow, kTorturePages - first);
    }
    const ByteRange range{.start = {first * kPageSize.value}, .length = {count * kPageSize.value}};
    if (!job_.sync(range)) {
      wrong_ = "sync failed";
      return;
    }
    stored_.resize(count * kTorturePageWords);
    const ssize_t got = ::pread(job_.file, stored_.data(), range.length.value, static_cast<off_t>(range.start.value));
    if (got != static_cast<ssize_t>(range.length.value)) wrong_ = "reading the file failed";
    for (std::uint64_t i = job_.me; i < stored_.size() && wrong_.empty(); i += kTortureWriters) {
      const std::uint64_t index = first * kTorturePageWords + i;
      const std::uint32_t version = job_.model[index].started.load(std::memory_order_relaxed);
      if (stored_[i] != torture_value(index, version)) wrong_ = says("stored", index, stored_[i], version, version);
    }
  }

  Job job_;
  std::mt19937_64 random_;
  std::uint64_t window_ = 0;
  std::vector<std::uint64_t> stored_;
  std::string wrong_;
};

}  // namespace uffda::test
