// How often a touch finds its page, by which pages go when room is short: what the core does (mm/eviction_queue.h),
// beside the policies that know every touch. Traces of page numbers; 32,768 pages of 131,072 fit. Nothing is mapped.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <list>
#include <random>
#include <string>
#include <vector>

#include "common/bench.h"
#include "mm/eviction_queue.h"

namespace {

constexpr std::uint32_t kPages = 131'072;
constexpr std::uint32_t kFit = kPages / 4;
constexpr std::size_t kTouches = 2'000'000;
constexpr std::size_t kWarm = 800'000;  // of these, not counted
constexpr std::uint32_t kBatch = 256;   // pages that the core evicts at once

using Trace = std::vector<std::uint32_t>;

struct Rate {
  double hits = 0;          ///< percent
  double minor_faults = 0;  ///< per touch: what it costs to see which pages are used
};

/// Counts what `touch(page)` says of each touch: whether the page was there.
template <typename Touch>
double hits_of(const Trace& trace, Touch&& touch) {
  std::size_t hits = 0;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const bool hit = touch(trace[i]);
    if (hit && i >= kWarm) ++hits;
  }
  return 100.0 * static_cast<double>(hits) / static_cast<double>(trace.size() - kWarm);
}

enum class Known : std::uint8_t { lru, fifo, clock, sieve };

/// The policies that need one list: new pages at its begin.
Rate by_list(Known policy, const Trace& trace) {
  std::list<std::uint32_t> cached;
  std::vector<std::list<std::uint32_t>::iterator> where(kPages, cached.end());
  std::vector<bool> used(kPages);
  auto hand = cached.end();  // of SIEVE: the next to look at
  const auto evict = [&] {
    auto victim = std::prev(cached.end());
    if (policy == Known::sieve && hand != cached.end()) victim = hand;
    while (policy != Known::lru && policy != Known::fifo && used[*victim]) {
      used[*victim] = false;
      if (policy == Known::clock) {
        cached.splice(cached.begin(), cached, victim);
        victim = std::prev(cached.end());
      } else {
        victim = victim == cached.begin() ? std::prev(cached.end()) : std::prev(victim);
      }
    }
    hand = victim == cached.begin() ? cached.end() : std::prev(victim);
    where[*victim] = cached.end();
    cached.erase(victim);
  };
  return {.hits = hits_of(trace, [&](std::uint32_t page) {
            auto& at = where[page];
            if (at != cached.end()) {
              used[page] = true;
              if (policy == Known::lru) cached.splice(cached.begin(), cached, at);
              return true;
            }
            if (cached.size() == kFit) evict();
            cached.push_front(page);
            at = cached.begin();
            used[page] = false;
            return false;
          })};
}

/// Two queues of FIFO, a tenth and the rest; who is touched in the first goes to the second; what went from the first
/// is remembered. (S3-FIFO, Yang et al., SOSP 2023.)
class S3Fifo {
 public:
  bool touch(std::uint32_t page) {
    if (where_[page] != Where::out) {
      uses_[page] = static_cast<std::uint8_t>(std::min(uses_[page] + 1, 3));
      return true;
    }
    while (small_.size() + main_.size() >= kFit) evict();
    uses_[page] = 0;
    const bool known = clock_ - went_[page] < kFit && went_[page] != 0;
    where_[page] = known ? Where::main : Where::small;
    (known ? main_ : small_).push_front(page);
    return false;
  }

 private:
  enum class Where : std::uint8_t { out, small, main };
  void evict() {
    if (small_.size() >= kFit / 10 || main_.empty()) {
      const std::uint32_t page = small_.back();
      small_.pop_back();
      where_[page] = uses_[page] > 0 ? Where::main : Where::out;
      if (uses_[page] > 0) {
        uses_[page] = 0;
        main_.push_front(page);
      } else {
        went_[page] = ++clock_;
      }
      return;
    }
    const std::uint32_t page = main_.back();
    main_.pop_back();
    if (uses_[page] > 0) {
      --uses_[page];
      main_.push_front(page);
    } else {
      where_[page] = Where::out;
    }
  }

  std::list<std::uint32_t> small_;
  std::list<std::uint32_t> main_;
  std::vector<Where> where_ = std::vector<Where>(kPages, Where::out);
  std::vector<std::uint8_t> uses_ = std::vector<std::uint8_t>(kPages);
  std::vector<std::uint64_t> went_ = std::vector<std::uint64_t>(kPages);
  std::uint64_t clock_ = 0;
};

Rate by_s3_fifo(const Trace& trace) {
  S3Fifo cache;
  return {.hits = hits_of(trace, [&](std::uint32_t page) { return cache.touch(page); })};
}

/// The core's: it sees a touch only if the page was taken out of the page tables before.
class Core {
 public:
  bool touch(std::uint32_t page) {
    if (cached_[page]) {
      minor_faults += mapped_[page] ? 0U : 1U;
      used_[page] = used_[page] || !mapped_[page];
      mapped_[page] = true;
      return true;
    }
    if (count_ == kFit) evict();
    queue_.add({.first = page, .count = 1});
    cached_[page] = mapped_[page] = true;
    ++count_;
    return false;
  }

  std::uint64_t minor_faults = 0;

 private:
  void evict() {
    for (std::uint32_t gone = 0; gone < kBatch;) {
      const uffda::EvictionQueue::Candidate next = queue_.next_to_go(1);
      const uffda::FolioIndex page = next.run.first;
      if (next.was_watched && used_[page]) {
        queue_.keep(next.run);
        continue;
      }
      cached_[page] = false;
      --count_;
      ++gone;
    }
    const auto watched = [&](uffda::FolioRange run) {
      for (uffda::FolioIndex i = run.first; i < run.end(); ++i) used_[i] = false;
    };
    for (;;) {
      const uffda::FolioRange unmapped = queue_.next_to_watch(watched);
      if (unmapped.empty()) break;
      for (uffda::FolioIndex i = unmapped.first; i < unmapped.end(); ++i) mapped_[i] = false;
    }
  }

  uffda::EvictionQueue queue_ = *uffda::EvictionQueue::create(kPages, kFit);
  std::vector<bool> cached_ = std::vector<bool>(kPages);
  std::vector<bool> mapped_ = std::vector<bool>(kPages);
  std::vector<bool> used_ = std::vector<bool>(kPages);
  std::uint32_t count_ = 0;
};

Rate by_core(const Trace& trace) {
  Core core;
  const double hits = hits_of(trace, [&](std::uint32_t page) { return core.touch(page); });
  return {.hits = hits, .minor_faults = static_cast<double>(core.minor_faults) / static_cast<double>(trace.size())};
}

Trace zipf(std::uint64_t seed) {
  std::vector<double> sums(kPages);
  double sum = 0;
  for (std::size_t i = 0; i < kPages; ++i) sums[i] = sum += std::pow(static_cast<double>(i + 1), -0.99);
  const std::vector<std::uint32_t> places = bench::shuffled(kPages);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> anywhere(0, sum);
  Trace trace(kTouches);
  for (std::uint32_t& page : trace) {
    page = places[static_cast<std::size_t>(std::ranges::lower_bound(sums, anywhere(random)) - sums.begin())];
  }
  return trace;
}

Trace zipf_and_scans() {
  const Trace popular = zipf(2);
  Trace trace;
  std::uint32_t scanned = 0;
  for (std::size_t i = 0; trace.size() < kTouches; ++i) {
    trace.push_back(popular[i]);
    if (i / 200'000 % 2 == 0 || i % 4 != 0) continue;
    trace.push_back(scanned++ % kPages);
    trace.push_back(scanned++ % kPages);
  }
  return trace;
}

template <typename Page>
Trace trace_of(Page&& page) {
  Trace trace(kTouches);
  for (std::size_t i = 0; i < kTouches; ++i) trace[i] = static_cast<std::uint32_t>(page(i));
  return trace;
}

struct Named {
  std::string name;
  Trace trace;
};

std::vector<Named> traces() {
  std::mt19937_64 random(3);
  const Trace popular = zipf(5);
  return {
      {"Zipf 0.99", zipf(1)},
      {"Zipf 0.99 and scans", zipf_and_scans()},
      {"Zipf 0.99, what is popular moves every 500,000",
       trace_of([&](std::size_t i) { return (popular[i] + i / 500'000 * 40'000) % kPages; })},
      {"70 % of touches in a fifth",
       trace_of([&](std::size_t) { return random() % (random() % 10 < 7 ? kPages / 5 : kPages); })},
      {"a loop of 9/8 of what fits", trace_of([](std::size_t i) { return i % (kFit / 8 * 9); })},
      {"a loop of 7/8 of what fits", trace_of([](std::size_t i) { return i % (kFit / 8 * 7); })},
  };
}

}  // namespace

int main() {
  fmt::print(
      "hits in %; minor faults per touch\n\n| trace | LRU | FIFO | CLOCK | SIEVE | S3-FIFO | uffda | its minor faults "
      "|\n");
  fmt::print("|---|---|---|---|---|---|---|---|\n");
  for (const Named& named : traces()) {
    const Rate core = by_core(named.trace);
    fmt::print("| {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.3f} |\n", named.name,
               by_list(Known::lru, named.trace).hits, by_list(Known::fifo, named.trace).hits,
               by_list(Known::clock, named.trace).hits, by_list(Known::sieve, named.trace).hits,
               by_s3_fifo(named.trace).hits, core.hits, core.minor_faults);
  }
  return 0;
}
