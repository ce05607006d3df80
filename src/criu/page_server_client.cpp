#include "criu/page_server_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/mutex.h"
#include "criu/page_server_wire.h"
#include "os/tcp.h"

namespace uffda::criu {
namespace {

constexpr Duration kConnectWait = std::chrono::seconds(10);
constexpr ByteCount kMostAsked = 1_MiB;

class Client final : public RemotePages {
 public:
  Client(os::UniqueFd socket, std::string name, RecordSize size)
      : name_(std::move(name)), size_(size), socket_(std::move(socket)) {}

  ~Client() override {
    const MutexLock lock(mutex_);
    if (!socket_) return;
    const Deadline deadline = Deadline::after(std::chrono::seconds(1));
    std::array<std::byte, sizeof(std::int32_t)> status{};
    // Otherwise the process that waits on the other host would be told that its move failed.
    if (!send({.command = PageCommand::close}, deadline)) return;
    [[maybe_unused]] const auto heard = os::receive_all(socket_.get(), status, deadline);  // that is enough
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  Result<void> read(pid_t pid, Address address, std::span<std::byte> out, Deadline deadline) override {
    const MutexLock lock(mutex_);
    if (!socket_) return fail(Errc::gone, name_ + ": the connection has ended");
    while (!out.empty()) {
      const Result<ByteCount> got = read_some(pid, address, out, deadline);
      if (!got) {
        socket_.reset();  // what comes next would be taken for another answer
        return std::unexpected(got.error().within(name_));
      }
      out = out.subspan(got->value);
      address = address + *got;
    }
    return {};
  }

 private:
  Result<void> send(const PageRecord& record, Deadline deadline) UFFDA_REQUIRES(mutex_) {
    std::array<std::byte, PageRecord::kMaxSize> bytes{};
    return os::send_all(socket_.get(), encode_record(record, size_, bytes), deadline);
  }

  Result<ByteCount> read_some(pid_t pid, Address address, std::span<std::byte> out, Deadline deadline)
      UFFDA_REQUIRES(mutex_) {
    const std::uint64_t pages = std::min<std::uint64_t>(out.size(), kMostAsked.value) / kPageSize.value;
    const PageRecord asked{
        .command = PageCommand::get, .pages = pages, .address = address.value, .id = static_cast<std::uint64_t>(pid)};
    UFFDA_TRY_VOID(send(asked, deadline));
    std::array<std::byte, PageRecord::kMaxSize> bytes{};
    const std::span<std::byte> header = std::span(bytes).first(std::to_underlying(size_));
    UFFDA_TRY_VOID(os::receive_all(socket_.get(), header, deadline));
    const PageRecord answer = UFFDA_TRY(parse_record(header, size_));
    const bool fits = answer.pages != 0 && answer.pages <= pages && answer.address == asked.address;
    if (answer.command != PageCommand::add_flags || !fits)
      return fail(Errc::protocol, "answers with something else; is it of another version? (records=24 or 32)");
    const ByteCount length = kPageSize * answer.pages;
    UFFDA_TRY_VOID(os::receive_all(socket_.get(), out.first(length.value), deadline));
    return length;
  }

  const std::string name_;
  const RecordSize size_;
  Mutex mutex_;
  os::UniqueFd socket_ UFFDA_GUARDED_BY(mutex_);
};

}  // namespace

Result<std::unique_ptr<RemotePages>> connect_page_server(const std::string& address, bool wide) {
  const std::size_t colon = address.rfind(':');
  if (!address.starts_with("//") || colon == std::string::npos || colon <= 2 || colon + 1 == address.size())
    return fail(Errc::invalid_argument,
                fmt::format("criu-page-server:{}: write it as criu-page-server://HOST:PORT", address));
  os::UniqueFd socket = UFFDA_TRY(
      os::connect_tcp(address.substr(2, colon - 2), address.substr(colon + 1), Deadline::after(kConnectWait)));
  return std::make_unique<Client>(std::move(socket), fmt::format("criu-page-server:{}", address),
                                  wide ? RecordSize::wide : RecordSize::narrow);
}

}  // namespace uffda::criu
