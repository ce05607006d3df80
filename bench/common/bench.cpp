#include "common/bench.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>

namespace bench {

void die(const std::string& what) {
  std::fprintf(stderr, "bench: %s\n", what.c_str());
  std::exit(1);
}

void check(bool ok, std::string_view what) {
  if (!ok) die(std::string(what) + ": " + std::strerror(errno));
}

std::vector<int> usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  check(::sched_getaffinity(0, sizeof set, &set) == 0, "sched_getaffinity");
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

void pin_thread(std::vector<int> cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  check(::pthread_setaffinity_np(::pthread_self(), sizeof set, &set) == 0, "pthread_setaffinity_np");
}

PinnedHere::PinnedHere(int cpu) : before_(usable_cpus()) { pin_thread({cpu}); }
PinnedHere::~PinnedHere() { pin_thread(before_); }

Summary summarize(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::ranges::sort(samples);
  const auto at = [&](double share) {
    const auto last = static_cast<double>(samples.size() - 1);
    return samples[static_cast<std::size_t>(share * last + 0.5)];
  };
  const double total = std::accumulate(samples.begin(), samples.end(), 0.0);
  return {.p50 = at(0.5), .p90 = at(0.9), .p99 = at(0.99), .mean = total / static_cast<double>(samples.size())};
}

double median(std::vector<double> samples) { return summarize(std::move(samples)).p50; }

std::vector<std::uint32_t> shuffled(std::size_t count, std::uint64_t seed) {
  std::vector<std::uint32_t> pages(count);
  std::iota(pages.begin(), pages.end(), 0U);
  std::mt19937_64 random(seed);
  std::ranges::shuffle(pages, random);
  return pages;
}

}  // namespace bench
