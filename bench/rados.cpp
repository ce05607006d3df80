// Memory from a Ceph cluster: 64 faults at once beside one, and touching a part of an image beside reading all of it
// first. Usage: rados --uri rados:POOL/OBJECT (of 64 MiB and more; bench/rados.sh starts a cluster and stores one).
#include <fmt/format.h>

#include <barrier>
#include <memory>
#include <semaphore>
#include <thread>
#include <vector>

#include "common/bench.h"
#include "uffda/uffda.h"

namespace {

using namespace bench;

constexpr std::size_t kThreads = 64;
constexpr std::size_t kPart = 20;  ///< one page in so many is touched
constexpr std::size_t kReadBytes = std::size_t{1} << 20U;
constexpr std::size_t kReadsUnderWay = 16;

uffda::Memory map(const std::string& uri) {
  auto memory = uffda::map(uri);
  if (!memory) die(memory.error().message());
  return *std::move(memory);
}

void touch(const std::byte* at) {
  [[maybe_unused]] const volatile std::byte touched = *const_cast<const volatile std::byte*>(at);
}

double ms_since(std::int64_t start) { return static_cast<double>(now_ns() - start) / 1e6; }

/// Every page is far from the others and they come in no order, so that no read-ahead brings it.
double one_fault_ms(const std::string& uri) {
  const uffda::Memory memory = map(uri);
  const std::size_t stride = memory.bytes().size() / kThreads;
  std::vector<double> times;
  for (const std::uint32_t i : shuffled(kThreads)) {
    const std::int64_t start = now_ns();
    touch(memory.bytes().data() + i * stride);
    times.push_back(ms_since(start));
  }
  return median(times);
}

double many_faults_ms(const std::string& uri) {
  const uffda::Memory memory = map(uri);
  const std::size_t stride = memory.bytes().size() / kThreads;
  std::barrier start_line(kThreads + 1);
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      start_line.arrive_and_wait();
      touch(memory.bytes().data() + i * stride);
    });
  }
  start_line.arrive_and_wait();
  const std::int64_t start = now_ns();
  threads.clear();
  return ms_since(start);
}

double part_ms(const std::string& uri) {
  const uffda::Memory memory = map(uri);
  const std::size_t pages = memory.bytes().size() / kPage;
  const std::vector<std::uint32_t> order = shuffled(pages);
  const std::int64_t start = now_ns();
  for (std::size_t i = 0; i < pages / kPart; ++i) touch(memory.bytes().data() + order[i] * kPage);
  return ms_since(start);
}

/// Reads with a bounded number under way, into memory that is there.
class WholeRead final : public uffda::FetchOwner {
 public:
  void run(uffda::PageSource& source, std::vector<std::byte>& bytes) {
    const std::size_t size = bytes.size();
    for (std::size_t at = 0; at < size; at += kReadBytes) {
      const std::span<std::byte> into = std::span(bytes).subspan(at, std::min(kReadBytes, size - at));
      room_.acquire();
      source.fetch(uffda::FetchTicket(*this, nullptr, {{at}, {into.size()}}, into,
                                      uffda::Deadline::after(std::chrono::minutes(1))));
    }
    for (std::size_t i = 0; i < kReadsUnderWay; ++i) room_.acquire();
    room_.release(kReadsUnderWay);
  }

 private:
  void fetched(void*, uffda::Result<uffda::ByteCount> result) noexcept override {
    check(result.has_value(), "a fetch failed");
    room_.release();
  }
  std::counting_semaphore<kReadsUnderWay> room_{kReadsUnderWay};
};

double whole_first_ms(const std::string& uri) {
  auto source = uffda::open_source(uri);
  if (!source) die(source.error().message());
  const std::size_t size = (*source)->properties().size.value;
  std::vector<std::byte> bytes(size, std::byte{1});
  const std::vector<std::uint32_t> order = shuffled(size / kPage);
  const std::int64_t start = now_ns();
  WholeRead().run(**source, bytes);
  for (std::size_t i = 0; i < order.size() / kPart; ++i) touch(bytes.data() + order[i] * kPage);
  return ms_since(start);
}

void compare(Report& report, const std::string& name, const std::string& peer_name, auto ours, auto theirs,
             std::optional<Target> target = std::nullopt) {
  Report::progress(name);
  std::vector<double> uffda;
  std::vector<double> peer;
  for (unsigned round = 0; round < (report.quick() ? 3U : 9U); ++round) {
    uffda.push_back(ours());
    peer.push_back(theirs());
  }
  report.compare_rounds({.name = name, .unit = "ms", .peer_name = peer_name, .target = target}, uffda, peer);
}

}  // namespace

int main(int argc, char** argv) {
  Report report("rados", argc, argv);
  const std::string uri = report.option("uri", "");
  if (uri.empty()) {
    report.skip("rados:", "no --uri; bench/rados.sh starts a cluster");
  } else {
    const std::string far = "delay+" + uri + "&delay=2ms";
    compare(
        report, "rados: 64 faults at once", "one fault", [&] { return many_faults_ms(uri); },
        [&] { return one_fault_ms(uri); });
    compare(
        report, "rados: 64 faults at once, 2 ms away", "one fault", [&] { return many_faults_ms(far); },
        [&] { return one_fault_ms(far); });
    compare(
        report, "rados: what 2 ms of distance add to 64 faults at once", "to one fault",
        [&] { return many_faults_ms(far) - many_faults_ms(uri); },
        [&] { return one_fault_ms(far) - one_fault_ms(uri); }, kAboutOneRoundTrip);
    compare(
        report, "rados: touching one page in 20", "after reading the whole image", [&] { return part_ms(uri); },
        [&] { return whole_first_ms(uri); });
  }
  report.finish();
  return 0;
}
