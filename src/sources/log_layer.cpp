// log+: one line for every fetch: which bytes, how long it took, what came of it.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <vector>

#include <fmt/format.h>

#include "base/mutex.h"
#include "os/fd.h"
#include "sources/builtin.h"
#include "sources/layer.h"

namespace uffda::sources {

namespace {

class LogLayer final : public Layer, private FetchOwner {
 public:
  static Result<std::unique_ptr<PageSource>> wrap(std::unique_ptr<PageSource> inner, const SourceUri& uri) {
    os::UniqueFd file;
    if (const std::string* path = uri.find("file"); path != nullptr) {
      file.reset(::open(path->c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0644));
      if (!file) return fail_errno(errno, "log+: parameter file=" + *path);
    }
    return std::make_unique<LogLayer>(std::move(inner), std::move(file));
  }

  LogLayer(std::unique_ptr<PageSource> source, os::UniqueFd file)
      : Layer(std::move(source)), file_(std::move(file)), slots_(inner().properties().parallel) {
    for (Slot& slot : slots_) {
      slot.next = free_;
      free_ = &slot;
    }
    opened("log+" + inner().name(), inner().properties());
  }

  ~LogLayer() override { close_inner(); }

 private:
  struct Slot {
    std::optional<FetchTicket> ticket;
    TimePoint start;
    Slot* next = nullptr;
  };

  void do_fetch(FetchTicket ticket) noexcept override {
    Slot* const slot = take();
    if (slot == nullptr) {
      std::move(ticket).fail(Error(Errc::busy, name() + ": too many fetches at once"));
      return;
    }
    slot->start = Clock::now();
    slot->ticket.emplace(std::move(ticket));
    const FetchTicket& outer = *slot->ticket;
    inner().fetch(FetchTicket(*this, slot, outer.range(), outer.buffer(), outer.deadline()));
  }

  void fetched(void* request, Result<ByteCount> result) noexcept override {
    auto* const slot = static_cast<Slot*>(request);
    FetchTicket ticket = std::move(*slot->ticket);
    const TimePoint start = slot->start;
    give_back(slot);
    write_line("fetch", ticket.range(), start, result ? nullptr : &result.error());
    if (result) {
      std::move(ticket).complete(*result);
    } else {
      std::move(ticket).fail(std::move(result).error());
    }
  }

  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    const TimePoint start = Clock::now();
    Result<void> result = inner().fetch_now(offset, buffer);
    write_line("now", {offset, {buffer.size()}}, start, result ? nullptr : &result.error());
    return result;
  }

  Slot* take() noexcept {
    const MutexLock lock(mutex_);
    Slot* const slot = free_;
    if (slot != nullptr) free_ = slot->next;
    return slot;
  }

  void give_back(Slot* slot) noexcept {
    slot->ticket.reset();
    const MutexLock lock(mutex_);
    slot->next = free_;
    free_ = slot;
  }

  /// One write, so that lines of several threads do not mix. Allocates nothing: fetch_now may be called in a signal
  /// handler.
  void write_line(std::string_view what, ByteRange range, TimePoint start, const Error* error) noexcept {
    const auto took = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
    std::array<char, 512> line{};
    const auto done = fmt::format_to_n(
        line.data(), line.size() - 1, "{} {} offset={} length={} us={} result={}{}{}", name(), what, range.start.value,
        range.length.value, took.count(), error == nullptr ? "ok" : to_string(error->code()),
        error == nullptr || error->context().empty() ? "" : ": ", error == nullptr ? "" : error->context());
    std::size_t length = std::min(done.size, line.size() - 1);
    line[length++] = '\n';
    // A line that cannot be written is lost: the log must not fail what it watches.
    [[maybe_unused]] const ssize_t written = ::write(file_ ? file_.get() : STDERR_FILENO, line.data(), length);
  }

  const os::UniqueFd file_;
  std::vector<Slot> slots_;

  Mutex mutex_;
  Slot* free_ UFFDA_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace

SourceLayer log_layer() {
  return {.name = "log",
          .help = "writes a line for every fetch",
          .parameters = {{"file", "append to this file (default: standard error)"}},
          .wrap = LogLayer::wrap};
}

}  // namespace uffda::sources
