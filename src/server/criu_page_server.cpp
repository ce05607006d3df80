#include "server/criu_page_server.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <vector>

#include "base/log.h"
#include "criu/dump.h"
#include "criu/dump_source.h"
#include "criu/page_server_wire.h"
#include "os/tcp.h"
#include "server/criu_page_receiver.h"
#include "server/process.h"
#include "sources/pack/blocking_reader.h"
#include "uffda/page_source.h"

namespace uffda {
namespace {

using criu::PageCommand;
using criu::PageRecord;
using criu::RecordSize;

constexpr Duration kAnswer = std::chrono::minutes(1);  // for the other side to take an answer
constexpr std::uint64_t kMostPages = 1024;             // in one answer; who asked for more asks again

/// What one connection is served with.
class Pages {
 public:
  virtual ~Pages() = default;
  /// Whether the conversation goes on. What else a record brings is read from the socket.
  virtual Result<bool> handle(int socket, const PageRecord& record) = 0;
};

Result<void> send_number(int socket, std::int32_t number) {
  return os::send_all(socket, std::as_bytes(std::span(&number, 1)), Deadline::after(kAnswer));
}

/// Answers GET from the memory of a dump.
class Giver final : public Pages {
 public:
  static Result<std::unique_ptr<Pages>> create(const CriuPageServerOptions& options) {
    criu::Layout layout = UFFDA_TRY(criu::Layout::read(options.images));
    auto source = UFFDA_TRY(open_source(options.pages.empty() ? criu::source_uri(options.images) : options.pages));
    if (source->properties().size != layout.size())
      return fail(Errc::invalid_argument,
                  fmt::format("{} is not the memory of the dump in {}", source->name(), options.images));
    return std::make_unique<Giver>(std::move(layout), std::move(source), options);
  }

  Giver(criu::Layout layout, std::unique_ptr<PageSource> source, const CriuPageServerOptions& options)
      : layout_(std::move(layout)),
        source_(std::move(source)),
        reader_(*source_, options.deadline),
        size_(options.wide ? RecordSize::wide : RecordSize::narrow),
        buffer_(kMostPages * kPageSize.value) {}

  Result<bool> handle(int socket, const PageRecord& record) override {
    switch (record.command) {
      case PageCommand::close:
      case PageCommand::force_close:
        UFFDA_TRY_VOID(send_number(socket, 0));
        return false;
      case PageCommand::get:
        UFFDA_TRY_VOID(give(socket, record));
        return true;
      default:
        return fail(Errc::protocol, "asks for something else than pages: to receive a dump, start it with --receive");
    }
  }

 private:
  Result<void> give(int socket, const PageRecord& asked) {
    const ByteRange range = UFFDA_TRY(find(asked));
    const std::span<std::byte> bytes = std::span(buffer_).first(range.length.value);
    UFFDA_TRY_VOID(reader_.read(range.start, bytes));
    const PageRecord answer{.command = PageCommand::add_flags,
                            .flags = PageRecord::kPresent,
                            .pages = range.length.value / kPageSize.value,
                            .address = asked.address,
                            .id = asked.id};
    std::array<std::byte, PageRecord::kMaxSize> header{};
    UFFDA_TRY_VOID(os::send_all(socket, encode_record(answer, size_, header), Deadline::after(kAnswer)));
    return os::send_all(socket, bytes, Deadline::after(kAnswer));
  }

  /// As much of what is asked for as lies in one VMA.
  [[nodiscard]] Result<ByteRange> find(const PageRecord& asked) const {
    const criu::Task* const task = layout_.find(static_cast<pid_t>(asked.id));
    const Address address{asked.address};
    if (task != nullptr && asked.pages != 0 && asked.address % kPageSize.value == 0) {
      for (const criu::Vma& vma : task->vmas) {
        if (address < vma.range.start || address >= vma.range.end()) continue;
        const std::uint64_t pages = std::min(asked.pages, kMostPages);
        return ByteRange{.start = vma.offset + (address - vma.range.start),
                         .length = std::min(kPageSize * pages, vma.range.end() - address)};
      }
    }
    return fail(Errc::protocol, fmt::format("asks for {} pages at {:#x} of task {}, which the dump does not have",
                                            asked.pages, asked.address, asked.id));
  }

  const criu::Layout layout_;
  const std::unique_ptr<PageSource> source_;
  pack::BlockingReader reader_;
  const RecordSize size_;
  std::vector<std::byte> buffer_;
};

/// Waits for the socket to be readable. False: a signal came.
bool wait_for(int socket, int signals) {
  std::array<pollfd, 2> entries{pollfd{.fd = socket, .events = POLLIN, .revents = 0},
                                pollfd{.fd = signals, .events = POLLIN, .revents = 0}};
  while (::poll(entries.data(), entries.size(), -1) < 0 && errno == EINTR) {
  }
  return entries[1].revents == 0;
}

Result<int> serve(int socket, int signals, RecordSize size, Pages& pages) {
  std::array<std::byte, PageRecord::kMaxSize> bytes{};
  const std::span<std::byte> header = std::span(bytes).first(std::to_underlying(size));
  for (;;) {
    if (!wait_for(socket, signals)) return fail(Errc::cancelled, "ended by a signal, with a client connected");
    UFFDA_TRY_VOID(os::receive_all(socket, header, Deadline::after(kAnswer)));
    if (!UFFDA_TRY(pages.handle(socket, UFFDA_TRY(criu::parse_record(header, size))))) return 0;
  }
}

class Receiver final : public Pages {
 public:
  explicit Receiver(std::string directory) : receiver_(CriuPageReceiver::files_in(std::move(directory))) {}
  Result<bool> handle(int socket, const PageRecord& record) override { return receiver_.handle(socket, record); }

 private:
  CriuPageReceiver receiver_;
};

}  // namespace

Result<int> run_criu_page_server(const CriuPageServerOptions& options) {
  EndSignals signals = UFFDA_TRY(EndSignals::create());
  std::unique_ptr<Pages> pages;
  if (options.receive) {
    pages = std::make_unique<Receiver>(options.images);
  } else {
    pages = UFFDA_TRY(Giver::create(options));
  }
  const os::UniqueFd listener = UFFDA_TRY(os::listen_tcp(options.address, std::to_string(options.port)));
  fmt::print("listening at {}:{}\n", options.address, UFFDA_TRY(os::port_of(listener.get())));
  (void)std::fflush(stdout);
  if (options.ready_fd >= 0) {
    const os::UniqueFd ready(options.ready_fd);
    [[maybe_unused]] const ssize_t written = ::write(ready.get(), "ready\n", 6);  // who does not listen does not care
  }
  os::UniqueFd socket;
  while (!socket) {
    if (!wait_for(listener.get(), signals.fd())) return 0;
    socket.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket && errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) return fail_errno(errno, "accept");
  }
  // A client may be silent for as long as its task needs no page; one whose host is gone is not.
  const int on = 1;
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) != 0)
    return fail_errno(errno, "SO_KEEPALIVE");
  return serve(socket.get(), signals.fd(), options.wide ? RecordSize::wide : RecordSize::narrow, *pages);
}

}  // namespace uffda
