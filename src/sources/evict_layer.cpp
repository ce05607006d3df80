// evict+: whatever is cached and clean of the source is dropped again, at random places, all the time: what a program
// sees under the hardest shortage of memory. The pages go the way that a source has to take them back.
#include <algorithm>
#include <system_error>
#include <thread>

#include "base/log.h"
#include "base/mutex.h"
#include "os/signals.h"
#include "sources/builtin.h"
#include "sources/layer.h"

namespace uffda::sources {

namespace {

class EvictLayer final : public Layer {
 public:
  static Result<std::unique_ptr<PageSource>> wrap(std::unique_ptr<PageSource> inner, const SourceUri& uri) {
    const auto every = UFFDA_TRY(uri.duration("every", kEvery));
    const std::uint64_t seed = UFFDA_TRY(uri.number("seed", 0));
    return std::make_unique<EvictLayer>(std::move(inner), every, seed);
  }

  EvictLayer(std::unique_ptr<PageSource> source, std::chrono::nanoseconds every, std::uint64_t seed)
      : Layer(std::move(source)), every_(every), seed_(seed) {
    opened("evict+" + inner().name(), inner().properties());
  }

  EvictLayer(const EvictLayer&) = delete;
  EvictLayer& operator=(const EvictLayer&) = delete;
  ~EvictLayer() override {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

 private:
  static constexpr std::chrono::nanoseconds kEvery = std::chrono::microseconds(100);
  static constexpr ByteCount kMost = 64_KiB;  // at once

  void do_fetch(FetchTicket ticket) noexcept override { inner().fetch(std::move(ticket)); }
  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    return inner().fetch_now(offset, buffer);
  }

  void do_attach(std::shared_ptr<PageSink> sink) override {
    sink_ = sink;
    inner().attach(std::move(sink));
    const os::BlockedSignals blocked;
    try {
      thread_ = std::thread([this] { run(); });
    } catch (const std::system_error& error) {
      log(LogLevel::error, "{}: nothing is evicted: {}", name(), error.what());
    }
  }

  void run() {
    const std::uint64_t size = properties().size.value;
    for (std::uint64_t count = 0;; ++count) {
      {
        const MutexLock lock(mutex_);
        if (!stopping_) changed_.wait_until(mutex_, Clock::now() + every_);
        if (stopping_) return;
      }
      const std::uint64_t place = mixed(mixed(seed_) + count);
      const std::uint64_t start = place % size;
      const std::uint64_t length = 1 + place / size % kMost.value;
      // What cannot be dropped stays: memory of a type without faults, for one.
      [[maybe_unused]] const Result<void> dropped =
          sink_->invalidate({.start = {start}, .length = {std::min(length, size - start)}});
    }
  }

  const std::chrono::nanoseconds every_;
  const std::uint64_t seed_;
  std::shared_ptr<PageSink> sink_;
  std::thread thread_;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
};

}  // namespace

SourceLayer evict_layer() {
  return {.name = "evict",
          .help = "drops cached pages at random all the time, as if memory were never enough",
          .parameters = {{"every", "how often, such as 1ms (default 100us): up to 64 KiB each time"},
                         {"seed", "of the random numbers (default 0)"}},
          .wrap = EvictLayer::wrap};
}

}  // namespace uffda::sources
