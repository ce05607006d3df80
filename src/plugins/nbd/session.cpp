#include "plugins/nbd/session.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cerrno>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace uffda::nbd {

namespace {

constexpr const char* kAllocation = "base:allocation";
/// Where the server states none (the protocol's default).
constexpr std::uint64_t kDefaultMaxBlock = std::uint64_t{32} << 20U;
/// libnbd refuses longer ones.
constexpr std::uint64_t kLongestRequest = std::uint64_t{64} << 20U;
constexpr std::size_t kListedExports = 20;
/// A server that is gone without a word is noticed after this long.
constexpr int kPeerTimeoutSeconds = 10;

Error trouble(const sources::NbdAddress& address, Errc code, std::string_view what, int sys_errno = 0) {
  return Error(code, fmt::format("{}: {}", address.name, what), sys_errno);
}

/// The words of somebody else: no control bytes, not without end.
std::string printable(std::string_view text) {
  constexpr std::size_t kMost = 200;
  std::string out(text.substr(0, kMost));
  for (char& c : out) {
    if (std::isprint(static_cast<unsigned char>(c)) == 0) c = '?';
  }
  return out;
}

Result<void> set_up_tls(nbd_handle* handle, const sources::NbdAddress& address) {
  if (!address.tls) return {};
  if (nbd_supports_tls(handle) != 1)
    return fail(Errc::unsupported, address.name + ": this libnbd was built without TLS");
  bool ok = nbd_set_tls(handle, LIBNBD_TLS_REQUIRE) == 0 && nbd_set_tls_verify_peer(handle, address.verify) == 0;
  if (!address.certificates.empty()) ok = ok && nbd_set_tls_certificates(handle, address.certificates.c_str()) == 0;
  if (!address.psk_file.empty()) ok = ok && nbd_set_tls_psk_file(handle, address.psk_file.c_str()) == 0;
  if (!address.user.empty()) ok = ok && nbd_set_tls_username(handle, address.user.c_str()) == 0;
  if (!ok) return std::unexpected(last_error(address.name));
  return {};
}

/// The handshake, one method for each of its steps. Each waits for the deadline at most.
class Handshake {
 public:
  Handshake(const sources::NbdAddress& address, Deadline deadline, const Waiting& waiting)
      : address_(address), deadline_(deadline), waiting_(waiting), handle_(nbd_create()) {}

  Result<Session> run() {
    if (!handle_) return std::unexpected(last_error(address_.name));
    UFFDA_TRY_VOID(set_up());
    UFFDA_TRY_VOID(reach_server());
    if (nbd_aio_is_negotiating(handle_.get()) == 1) UFFDA_TRY_VOID(choose_export());
    set_timeouts();
    return session();
  }

 private:
  Result<void> set_up() {
    nbd_handle* const handle = handle_.get();
    const bool ok = nbd_set_export_name(handle, address_.export_name.c_str()) == 0 &&
                    nbd_set_opt_mode(handle, true) == 0 &&
                    // The bytes of a reply are counted, so they need not be zeroes first.
                    nbd_set_pread_initialize(handle, false) == 0 &&
                    (!address_.zero_runs || nbd_add_meta_context(handle, kAllocation) == 0);
    if (!ok) return std::unexpected(last_error(address_.name));
    return set_up_tls(handle, address_);
  }

  /// Until the server is ready to hear which export is wanted.
  Result<void> reach_server() {
    nbd_handle* const handle = handle_.get();
    const int started = address_.host.empty()
                            ? nbd_aio_connect_unix(handle, address_.socket.c_str())
                            : nbd_aio_connect_tcp(handle, address_.host.c_str(), address_.port.c_str());
    if (started != 0) return std::unexpected(unreachable());
    while (nbd_aio_is_connecting(handle) == 1) {
      if (!UFFDA_TRY(work())) return std::unexpected(unreachable());
    }
    if (nbd_aio_is_negotiating(handle) == 1 || nbd_aio_is_ready(handle) == 1) return {};
    return std::unexpected(unreachable());
  }

  Result<void> choose_export() {
    if (nbd_aio_opt_go(handle_.get(), {.callback = hear_end, .user_data = &answer_, .free = nullptr}) != 0)
      return std::unexpected(last_error(address_.name));
    while (!answer_ || nbd_aio_is_connecting(handle_.get()) == 1) {
      if (nbd_aio_is_dead(handle_.get()) == 1 || !UFFDA_TRY(work())) return std::unexpected(closed_while_negotiating());
    }
    if (nbd_aio_is_ready(handle_.get()) == 1) return {};
    return std::unexpected(refused(*answer_));
  }

  static int hear_end(void* answer, int* error) {
    *static_cast<std::optional<int>*>(answer) = *error;
    return 1;
  }

  /// The server said no to the export.
  Error refused(int error) {
    const std::string wanted = "'" + printable(address_.export_name) + "'";
    if (error == EPERM || (error == ENOTSUP && !address_.tls)) {
      return trouble(address_, Errc::permission_denied,
                     fmt::format("the server refuses the export {}{}", wanted,
                                 address_.tls ? "" : "; if it wants TLS, the address is nbds:"),
                     error);
    }
    if (error == ENOENT) return trouble(address_, Errc::not_found, "there is no export " + wanted + list(), error);
    return trouble(address_, Errc::io,
                   fmt::format("the server refuses the export {} ({}){}", wanted,
                               error != 0 ? Error::from_errno(error, "").message() : "no reason given", list()),
                   error);
  }

  /// "; the server has 'a', 'b'"
  std::string list() {
    const auto take = [](void* names, const char* name, const char*) {
      auto* const to = static_cast<std::vector<std::string>*>(names);
      if (to->size() < kListedExports) to->push_back("'" + printable(name) + "'");
      return 0;
    };
    answer_.reset();
    if (nbd_aio_opt_list(handle_.get(), {.callback = take, .user_data = &exports_, .free = nullptr},
                         {.callback = hear_end, .user_data = &answer_, .free = nullptr}) != 0)
      return {};
    while (!answer_ && nbd_aio_is_dead(handle_.get()) == 0) {
      const auto worked = work();
      if (!worked || !*worked) break;
    }
    return exports_.empty() ? "; it lists none" : fmt::format("; the server has {}", fmt::join(exports_, ", "));
  }

  /// False: the connection is lost, and libnbd's words are in why_. Errors: timed_out, and what before_wait says.
  Result<bool> work() {
    TimePoint until = deadline_.when();
    if (waiting_.before_wait) until = std::min(until, UFFDA_TRY(waiting_.before_wait()));
    if (const auto worked = wait_and_work(*handle_, waiting_.wake, until); !worked) {
      why_ = worked.error();
      return false;
    }
    if (deadline_.passed()) return std::unexpected(silent());
    return true;
  }

  Error silent() const {
    const auto seconds = std::chrono::duration<double>(address_.connect_timeout).count();
    return trouble(address_, Errc::timed_out,
                   fmt::format("no answer within {:g} s: is an NBD server there, and does it take one more client? "
                               "connect-timeout=TIME waits longer",
                               seconds));
  }

  Error unreachable() const {
    const Error why = why_ ? *why_ : last_error("");
    const int number = why.sys_errno();
    const std::string_view place = address_.host.empty() ? "the socket's path" : "host and port";
    if (number == ECONNREFUSED || number == ENOENT)
      return trouble(address_, Errc::io,
                     fmt::format("nobody listens there ({}): start the server, or correct {}", why.context(), place),
                     number);
    if (why.context().find("TLS") != std::string::npos || why.context().find("gnutls") != std::string::npos)
      return trouble(
          address_, Errc::permission_denied,
          fmt::format("{}: tls-certificates names the directory with the ca-cert.pem that signed the server's "
                      "certificate, tls-psk-file the keys; nbd: is without TLS",
                      why.context()),
          number);
    return closed_while_negotiating();
  }

  Error closed_while_negotiating() const {
    const Error why = why_ ? *why_ : last_error("");
    return trouble(
        address_, Errc::protocol,
        fmt::format("the server ended the negotiation ({}): is it an NBD server, and does it want TLS (nbds:)?",
                    why.context()),
        why.sys_errno());
  }

  void set_timeouts() const {
    if (address_.host.empty()) return;
    const int fd = nbd_aio_get_fd(handle_.get());
    const auto set = [fd](int level, int option, int value) { ::setsockopt(fd, level, option, &value, sizeof value); };
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, kPeerTimeoutSeconds / 2);
    set(IPPROTO_TCP, TCP_KEEPINTVL, 2);
    set(IPPROTO_TCP, TCP_KEEPCNT, 3);
    set(IPPROTO_TCP, TCP_USER_TIMEOUT, kPeerTimeoutSeconds * 1000);
  }

  Result<Session> session() {
    Session session;
    nbd_handle* const handle = handle_.get();
    const std::int64_t size = nbd_get_size(handle);
    if (size < 0)
      return fail(Errc::protocol, address_.name + ": the server gives no size that can be: is it an NBD server?");
    if (size == 0)
      return fail(Errc::invalid_argument, address_.name + ": the export is empty; there is nothing to map");
    session.size = {static_cast<std::uint64_t>(size)};
    const auto block = [handle](int kind) {
      return static_cast<std::uint64_t>(std::max<std::int64_t>(nbd_get_block_size(handle, kind), 0));
    };
    session.min_block = std::bit_ceil(std::clamp<std::uint64_t>(block(LIBNBD_SIZE_MINIMUM), 1, 65536));
    session.preferred = block(LIBNBD_SIZE_PREFERRED);
    const std::uint64_t most = block(LIBNBD_SIZE_MAXIMUM);
    session.max_block =
        std::max(align_down(std::min(most == 0 ? kDefaultMaxBlock : most, kLongestRequest), session.min_block),
                 session.min_block);
    session.several_allowed = nbd_can_multi_conn(handle) == 1;
    session.writable = nbd_is_read_only(handle) == 0;
    session.tells_block_status = address_.zero_runs && nbd_can_meta_context(handle, kAllocation) == 1;
    session.handle = std::move(handle_);
    return session;
  }

  const sources::NbdAddress& address_;
  const Deadline deadline_;
  const Waiting& waiting_;
  std::optional<Error> why_;
  // What the callbacks of the handle write to.
  std::optional<int> answer_;
  std::vector<std::string> exports_;
  Handle handle_;
};

}  // namespace

Error last_error(std::string_view what) {
  const char* const text = nbd_get_error();
  const int number = nbd_get_errno();
  std::string words = text != nullptr ? printable(text) : "libnbd gives no reason";
  if (!what.empty()) words = fmt::format("{}: {}", what, words);
  return Error(Errc::io, std::move(words), number);
}

Result<void> wait_and_work(nbd_handle& handle, int wake, TimePoint until) {
  const unsigned direction = nbd_aio_get_direction(&handle);
  pollfd fds[2] = {{.fd = nbd_aio_get_fd(&handle), .events = 0, .revents = 0},
                   {.fd = wake, .events = POLLIN, .revents = 0}};
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) fds[0].events |= POLLIN;
  if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) fds[0].events |= POLLOUT;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  if (::poll(fds, 2, static_cast<int>(std::clamp<std::int64_t>(left, 0, 10000))) <= 0) return {};
  const unsigned came = static_cast<unsigned>(fds[0].revents);
  if (came == 0) return {};
  const bool readable = (came & (POLLIN | POLLHUP | POLLERR)) != 0;
  const bool reads = readable && (direction & LIBNBD_AIO_DIRECTION_READ) != 0;
  if ((reads ? nbd_aio_notify_read(&handle) : nbd_aio_notify_write(&handle)) != 0)
    return std::unexpected(last_error(""));
  return {};
}

Result<Session> connect(const sources::NbdAddress& address, Deadline deadline, const Waiting& waiting) {
  return Handshake(address, deadline, waiting).run();
}

}  // namespace uffda::nbd
