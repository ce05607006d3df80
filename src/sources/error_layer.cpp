// error+: fetches, or writes, that fail on purpose. rate, range and after each narrow down which; with none of them all
// do.
#include <atomic>
#include <vector>

#include <fmt/format.h>

#include "base/mutex.h"
#include "sources/builtin.h"
#include "sources/layer.h"

namespace uffda::sources {

namespace {

/// Which are hit.
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

  /// Whether the one with this number, counted from 0, is hit.
  [[nodiscard]] bool hits(ByteRange bytes, std::uint64_t number) const {
    if (number < after) return false;
    if (range && (bytes.end() <= range->start || range->end() <= bytes.start)) return false;
    return rate >= 1 || mixed_fraction(mixed(seed) + number) < rate;
  }
};

class ErrorLayer final : public Layer {
 public:
  static Result<std::unique_ptr<PageSource>> wrap(std::unique_ptr<PageSource> inner, const SourceUri& uri) {
    const Selection selection = UFFDA_TRY(Selection::from(uri));
    const std::string mode = UFFDA_TRY(uri.choice("mode", {"fail", "never"}, "fail"));
    const std::string what = UFFDA_TRY(uri.choice("what", {"reads", "writes", "all"}, "reads"));
    return std::make_unique<ErrorLayer>(std::move(inner), selection, mode == "never", what);
  }

  ErrorLayer(std::unique_ptr<PageSource> source, const Selection& selection, bool never, std::string_view what)
      : Layer(std::move(source)),
        selection_(selection),
        never_(never),
        reads_(what != "writes"),
        writes_(what != "reads") {
    SourceProperties properties = inner().properties();
    properties.immediate = properties.immediate && !(never_ && reads_);
    held_.reserve(properties.parallel);
    held_writes_.reserve(properties.parallel);
    opened("error+" + inner().name(), properties);
  }

  ~ErrorLayer() override {
    std::vector<FetchTicket> left;  // answered with no lock held
    std::vector<WriteTicket> writes_left;
    {
      const MutexLock lock(mutex_);
      left.swap(held_);
      writes_left.swap(held_writes_);
    }
    for (FetchTicket& ticket : left) std::move(ticket).fail(Error(Errc::cancelled, name() + ": closed"));
    for (WriteTicket& ticket : writes_left) std::move(ticket).fail(Error(Errc::cancelled, name() + ": closed"));
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    if (!reads_ || !hits(ticket.range())) return inner().fetch(std::move(ticket));
    if (never_ && hold(ticket)) return;
    Error error = injected(ticket.range());
    std::move(ticket).fail(std::move(error));
  }

  void do_write_back(WriteTicket ticket) noexcept override {
    if (!writes_ || !hits(ticket.range())) return inner().write_back(std::move(ticket));
    if (never_ && hold(ticket)) return;
    Error error = injected(ticket.range());
    std::move(ticket).fail(std::move(error));
  }

  [[nodiscard]] bool hits(ByteRange bytes) noexcept {
    return selection_.hits(bytes, count_.fetch_add(1, std::memory_order_relaxed));
  }
  [[nodiscard]] Error injected(ByteRange bytes) const {
    return Error(Errc::io,
                 fmt::format("{}: injected failure of {} bytes at {}", name(), bytes.length.value, bytes.start.value));
  }

  /// Keeps the ticket until the layer goes. False if there are too many already.
  bool hold(FetchTicket& ticket) noexcept {
    const MutexLock lock(mutex_);
    return keep(held_, ticket);
  }
  bool hold(WriteTicket& ticket) noexcept {
    const MutexLock lock(mutex_);
    return keep(held_writes_, ticket);
  }
  template <typename Ticket>
  static bool keep(std::vector<Ticket>& held, Ticket& ticket) noexcept {
    if (held.size() == held.capacity()) return false;
    held.push_back(std::move(ticket));
    return true;
  }

  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    if (reads_ && hits({offset, {buffer.size()}})) {
      return uffda::fail(Errc::io, "injected");  // short enough to need no allocation
    }
    return inner().fetch_now(offset, buffer);
  }

  const Selection selection_;
  const bool never_;
  const bool reads_;
  const bool writes_;
  std::atomic<std::uint64_t> count_{0};

  Mutex mutex_;
  std::vector<FetchTicket> held_ UFFDA_GUARDED_BY(mutex_);
  std::vector<WriteTicket> held_writes_ UFFDA_GUARDED_BY(mutex_);
};

}  // namespace

SourceLayer error_layer() {
  return {.name = "error",
          .help = "lets fetches or writes fail: those that rate, range and after all allow",
          .parameters = {{"rate", "probability, such as 0.01 (default 1)"},
                         {"seed", "of the random numbers (default 0)"},
                         {"range", "START-END, END exclusive: only what touches these bytes"},
                         {"after", "only after this many (default 0)"},
                         {"what", "reads, writes or all (default reads)"},
                         {"mode", "fail: with an I/O error; never: no answer at all (default fail)"}},
          .wrap = ErrorLayer::wrap};
}

}  // namespace uffda::sources
