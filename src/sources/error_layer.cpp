// error+: fetches that fail on purpose. rate, range and after each narrow down which; with none of them all do.
#include <atomic>
#include <vector>

#include <fmt/format.h>

#include "base/mutex.h"
#include "sources/builtin.h"
#include "sources/layer.h"

namespace uffda::sources {

namespace {

/// Which fetches are hit.
struct Selection {
  double rate = 1;
  std::uint64_t seed = 0;
  std::optional<ByteRange> range;
  std::uint64_t after = 0;

  static Result<Selection> from(const SourceUri& uri) {
    return Selection{.rate = UFFDA_TRY(uri.fraction("rate", 1)),
                     .seed = UFFDA_TRY(uri.number("seed", 0)),
                     .range = UFFDA_TRY(uri.range("range")),
                     .after = UFFDA_TRY(uri.number("after", 0))};
  }

  /// Whether the fetch with this number, counted from 0, is hit.
  [[nodiscard]] bool hits(ByteRange fetch, std::uint64_t number) const {
    if (number < after) return false;
    if (range && (fetch.end() <= range->start || range->end() <= fetch.start)) return false;
    return rate >= 1 || mixed_fraction(mixed(seed) + number) < rate;
  }
};

class ErrorLayer final : public Layer {
 public:
  static Result<std::unique_ptr<PageSource>> wrap(std::unique_ptr<PageSource> inner, const SourceUri& uri) {
    const Selection selection = UFFDA_TRY(Selection::from(uri));
    const std::string mode = UFFDA_TRY(uri.choice("mode", {"fail", "never"}, "fail"));
    return std::make_unique<ErrorLayer>(std::move(inner), selection, mode == "never");
  }

  ErrorLayer(std::unique_ptr<PageSource> source, const Selection& selection, bool never)
      : Layer(std::move(source)), selection_(selection), never_(never) {
    SourceProperties properties = inner().properties();
    properties.immediate = properties.immediate && !never_;
    held_.reserve(properties.parallel);
    opened("error+" + inner().name(), properties);
  }

  ~ErrorLayer() override {
    std::vector<FetchTicket> left;  // answered with no lock held
    {
      const MutexLock lock(mutex_);
      left.swap(held_);
    }
    for (FetchTicket& ticket : left) std::move(ticket).fail(Error(Errc::cancelled, name() + ": closed"));
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    const ByteRange range = ticket.range();
    if (!selection_.hits(range, count_.fetch_add(1, std::memory_order_relaxed))) {
      inner().fetch(std::move(ticket));
    } else if (!never_ || !hold(ticket)) {
      std::move(ticket).fail(Error(Errc::io, fmt::format("{}: injected failure of {} bytes at {}", name(),
                                                         range.length.value, range.start.value)));
    }
  }

  /// Keeps the ticket until the layer goes. False if there are too many already.
  bool hold(FetchTicket& ticket) noexcept {
    const MutexLock lock(mutex_);
    if (held_.size() == held_.capacity()) return false;
    held_.push_back(std::move(ticket));
    return true;
  }

  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    if (selection_.hits({offset, {buffer.size()}}, count_.fetch_add(1, std::memory_order_relaxed))) {
      return uffda::fail(Errc::io, "injected");  // short enough to need no allocation
    }
    return inner().fetch_now(offset, buffer);
  }

  const Selection selection_;
  const bool never_;
  std::atomic<std::uint64_t> count_{0};

  Mutex mutex_;
  std::vector<FetchTicket> held_ UFFDA_GUARDED_BY(mutex_);
};

}  // namespace

SourceLayer error_layer() {
  return {.name = "error",
          .help = "lets fetches fail: those that rate, range and after all allow",
          .parameters = {{"rate", "probability, such as 0.01 (default 1)"},
                         {"seed", "of the random numbers (default 0)"},
                         {"range", "START-END, END exclusive: only fetches that touch these bytes"},
                         {"after", "only after this many fetches (default 0)"},
                         {"mode", "fail: with an I/O error; never: no answer at all (default fail)"}},
          .wrap = ErrorLayer::wrap};
}

}  // namespace uffda::sources
