#include "criu/dump_source.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "criu/page_server_client.h"
#include "os/signals.h"
#include "uffda/source_registry.h"

namespace uffda::criu {
namespace {

constexpr unsigned kThreads = 4;
constexpr unsigned kParallel = 64;
constexpr ByteCount kMaxInlineRead = 128_KiB;  // a larger one would keep the caller copying for too long
constexpr std::size_t kMaxExtents = 1024;      // in one answer

/// Reads in the calling thread what the system has cached, and the rest by threads of its own.
class DumpSource final : public PageSource {
 public:
  static Result<std::unique_ptr<PageSource>> open(std::string name, const std::string& directory,
                                                  std::unique_ptr<RemotePages> remote) {
    Layout layout = UFFDA_TRY(Layout::read(directory));
    Pages pages = UFFDA_TRY(Pages::open(directory, layout));
    auto source = std::make_unique<DumpSource>(std::move(layout), std::move(pages), std::move(remote));
    source->opened(std::move(name), {.size = source->layout_.size(), .parallel = kParallel});
    UFFDA_TRY_VOID(source->start());
    return source;
  }

  DumpSource(Layout layout, Pages pages, std::unique_ptr<RemotePages> remote)
      : layout_(std::move(layout)), pages_(std::move(pages)), remote_(std::move(remote)) {}
  DumpSource(const DumpSource&) = delete;
  DumpSource& operator=(const DumpSource&) = delete;

  ~DumpSource() override {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  Result<void> start() {
    const os::BlockedSignals blocked;
    try {
      for (unsigned i = 0; i < kThreads; ++i) {
        threads_.emplace_back([this] { run(); });
        pthread_setname_np(threads_.back().native_handle(), "uffda-criu");
      }
    } catch (const std::system_error& error) {
      return fail_errno(error.code().value(), "starting the threads of a criu source");
    }
    return {};
  }

  void do_fetch(FetchTicket ticket) noexcept override {
    const ByteRange range = ticket.range();
    const std::span<std::byte> out = ticket.buffer().first(range.length.value);
    if (range.length <= kMaxInlineRead && read(range.start, out, RWF_NOWAIT, ticket.deadline()))
      return std::move(ticket).complete(range.length);
    {
      const MutexLock lock(mutex_);
      if (queue_.size() < kParallel) {
        queue_.push_back(std::move(ticket));
        wanted_.notify_one();
        return;
      }
    }
    std::move(ticket).fail(Error(Errc::busy, name() + ": too many fetches at once"));
  }

  Result<std::vector<Extent>> do_extents(ByteRange range) override {
    std::vector<Extent> extents;
    ByteOffset at = range.start;
    for (const Run& run : pages_.from(at)) {
      if (run.range.start >= range.end() || extents.size() >= kMaxExtents) break;
      if (run.range.start > at)
        extents.push_back({.range = {.start = at, .length = run.range.start - at}, .kind = Extent::Kind::zero});
      at = std::max(at, run.range.start);
      const ByteOffset end = std::min(run.range.end(), range.end());
      extents.push_back({.range = {.start = at, .length = end - at}});
      at = end;
    }
    if (at < range.end() && extents.size() < kMaxExtents)
      extents.push_back({.range = {.start = at, .length = range.end() - at}, .kind = Extent::Kind::zero});
    return extents;
  }

  /// `flags` as preadv2's: with RWF_NOWAIT it fails where it would have to wait.
  Result<void> read(ByteOffset at, std::span<std::byte> out, int flags, Deadline deadline) noexcept {
    const auto fill = [&](ByteCount length) {
      std::ranges::fill(out.first(length.value), std::byte{0});
      out = out.subspan(length.value);
      at = at + length;
    };
    for (const Run& run : pages_.from(at)) {
      if (out.empty() || run.range.start.value >= at.value + out.size()) break;
      if (run.range.start > at) fill(run.range.start - at);
      const std::uint64_t length = std::min<std::uint64_t>(out.size(), (run.range.end() - at).value);
      UFFDA_TRY_VOID(read_run(run, at, out.first(length), flags, deadline));
      out = out.subspan(length);
      at = at + ByteCount{length};
    }
    fill({out.size()});
    return {};
  }

  Result<void> read_run(const Run& run, ByteOffset at, std::span<std::byte> out, int flags,
                        Deadline deadline) noexcept {
    if (run.file == Run::kRemote) return read_remote(at, out, flags, deadline);
    std::uint64_t offset = (run.at + (at - run.range.start)).value;
    const int fd = pages_.files()[run.file].get();
    while (!out.empty()) {
      const iovec part{.iov_base = out.data(), .iov_len = out.size()};
      const ssize_t done = ::preadv2(fd, &part, 1, static_cast<off_t>(offset), flags);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0 && flags != 0) return uffda::fail(Errc::again);
      if (done < 0) return fail_errno(errno, name() + ": reading its pages");
      if (done == 0) return uffda::fail(Errc::io, fmt::format("{}: its pages end at byte {} of them", name(), offset));
      out = out.subspan(static_cast<std::size_t>(done));
      offset += static_cast<std::uint64_t>(done);
    }
    return {};
  }

  Result<void> read_remote(ByteOffset at, std::span<std::byte> out, int flags, Deadline deadline) noexcept {
    if (flags != 0) return uffda::fail(Errc::again);
    if (remote_ == nullptr) {
      return uffda::fail(Errc::unsupported, name() +
                                                ": these pages stayed with the process that made the dump (criu dump "
                                                "--lazy-pages): open criu-page-server://HOST:PORT?images=DIR instead");
    }
    const Layout::Place place = layout_.place_of(at);
    return remote_->read(place.pid, place.address, out, deadline);
  }

  /// The next one; none when it is time to go. With `cancelled` set it is not to be started any more.
  std::optional<FetchTicket> take(bool& cancelled) {
    const MutexLock lock(mutex_);
    while (queue_.empty() && !stopping_) wanted_.wait_until(mutex_, Clock::now() + std::chrono::seconds(10));
    cancelled = stopping_;
    if (queue_.empty()) return std::nullopt;
    std::optional<FetchTicket> ticket(std::move(queue_.front()));
    queue_.pop_front();
    return ticket;
  }

  void run() noexcept {
    bool cancelled = false;
    while (std::optional<FetchTicket> ticket = take(cancelled)) {
      if (cancelled) {
        std::move(*ticket).fail(Error(Errc::cancelled, name() + ": closed"));
        continue;
      }
      const ByteRange range = ticket->range();
      const Result<void> done = read(range.start, ticket->buffer().first(range.length.value), 0, ticket->deadline());
      if (done) {
        std::move(*ticket).complete(range.length);
      } else {
        std::move(*ticket).fail(done.error());
      }
    }
  }

  const Layout layout_;
  const Pages pages_;
  const std::unique_ptr<RemotePages> remote_;
  std::vector<std::thread> threads_;

  Mutex mutex_;
  CondVar wanted_;
  std::deque<FetchTicket> queue_ UFFDA_GUARDED_BY(mutex_);
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
};

Result<std::unique_ptr<PageSource>> open_directory(const SourceUri& uri) {
  if (uri.rest().empty()) return fail(Errc::invalid_argument, "criu: needs a directory, such as criu:/var/dump");
  return open_dump(fmt::format("criu:{}", uri.rest()), uri.rest(), nullptr);
}

Result<std::unique_ptr<PageSource>> open_page_server(const SourceUri& uri) {
  const std::string name = fmt::format("criu-page-server:{}", uri.rest());
  const std::string* const images = uri.find("images");
  if (images == nullptr)
    return fail(Errc::invalid_argument, name + ": needs images=DIR, the directory of the dump's other images");
  const std::string records = UFFDA_TRY(uri.choice("records", {"24", "32"}, "24"));
  auto client = UFFDA_TRY(connect_page_server(uri.rest(), records.starts_with('3')));
  return open_dump(name, *images, std::move(client));
}

}  // namespace

std::string source_uri(const std::string& directory) {
  std::string uri = "criu:";
  for (const char c : directory) {
    if (c == '%' || c == '?') {
      uri += c == '%' ? "%25" : "%3F";
    } else {
      uri += c;
    }
  }
  return uri;
}

Result<std::unique_ptr<PageSource>> open_dump(std::string name, const std::string& directory,
                                              std::unique_ptr<RemotePages> remote) {
  return DumpSource::open(std::move(name), directory, std::move(remote));
}

void register_criu_sources() {
  const auto register_one = [](SourceScheme scheme) { UFFDA_ASSERT(register_source(std::move(scheme))); };
  register_one({.name = "criu",
                .syntax = "criu:DIR",
                .help = "the memory of a CRIU dump",
                .parameters = {},
                .open = open_directory,
                .parameters_of = nullptr,
                .create = nullptr});
  register_one({.name = "criu-page-server",
                .syntax = "criu-page-server://HOST:PORT",
                .help = "the memory of a dump whose pages are with criu dump --lazy-pages",
                .parameters = {{"images", "directory of the dump's other images (required)"},
                               {"records", "24 or 32 bytes: 24 up to CRIU 4.1, 32 from 4.2 on (default 24)"}},
                .open = open_page_server,
                .parameters_of = nullptr,
                .create = nullptr});
}

}  // namespace uffda::criu
