#include "mm/stats.h"

#include <algorithm>
#include <boost/histogram.hpp>

namespace uffda {
namespace {

namespace bh = boost::histogram;

constexpr int kBins = 180;  // 20 a decade
constexpr double kLowestUs = 0.1;
constexpr double kHighestUs = 1e8;

using Axis = bh::axis::regular<double, bh::axis::transform::log>;
using ThreadSafeCount = bh::accumulators::thread_safe<std::uint64_t>;

double in_us(Duration duration) { return std::chrono::duration<double, std::micro>(duration).count(); }

}  // namespace

std::string_view to_string(Stage stage) {
  constexpr std::array<std::string_view, kStages> kNames{"cached", "fetch", "publish", "missing"};
  return kNames.at(static_cast<std::size_t>(stage));
}

struct LatencyHistogram::Impl {
  using Histogram = bh::histogram<std::tuple<Axis>, bh::dense_storage<ThreadSafeCount>>;
  Histogram histogram{std::make_tuple(Axis(kBins, kLowestUs, kHighestUs))};
  std::atomic<std::uint64_t> total_ns{0};
  std::atomic<std::uint64_t> max_ns{0};
};

LatencyHistogram::LatencyHistogram() : impl_(std::make_unique<Impl>()) {}
LatencyHistogram::~LatencyHistogram() = default;

// NOLINTNEXTLINE(bugprone-exception-escape): an axis with over- and underflow bins never grows, so nothing allocates
void LatencyHistogram::record(Duration latency) noexcept {
  const auto ns = static_cast<std::uint64_t>(std::chrono::nanoseconds(latency).count());
  impl_->histogram(in_us(latency));
  impl_->total_ns.fetch_add(ns, std::memory_order_relaxed);
  std::uint64_t seen = impl_->max_ns.load(std::memory_order_relaxed);
  while (ns > seen && !impl_->max_ns.compare_exchange_weak(seen, ns, std::memory_order_relaxed)) {
  }
}

LatencySummary LatencyHistogram::summary() const {
  LatencySummary summary;
  const auto& histogram = impl_->histogram;
  for (auto&& bin : bh::indexed(histogram, bh::coverage::all)) summary.count += static_cast<std::uint64_t>(*bin);
  summary.total_us = static_cast<double>(impl_->total_ns.load(std::memory_order_relaxed)) / 1e3;
  summary.max_us = static_cast<double>(impl_->max_ns.load(std::memory_order_relaxed)) / 1e3;
  if (summary.count == 0) return summary;
  std::uint64_t below = 0;
  const auto quantile_reached = [&](double share) {
    return static_cast<double>(below) >= share * static_cast<double>(summary.count);
  };
  for (auto&& bin : bh::indexed(histogram, bh::coverage::all)) {
    below += static_cast<std::uint64_t>(*bin);
    const double upper = std::min(bin.bin(0).upper(), summary.max_us);
    if (summary.p50_us == 0 && quantile_reached(0.50)) summary.p50_us = upper;
    if (summary.p90_us == 0 && quantile_reached(0.90)) summary.p90_us = upper;
    if (summary.p99_us == 0 && quantile_reached(0.99)) summary.p99_us = upper;
  }
  return summary;
}

}  // namespace uffda
