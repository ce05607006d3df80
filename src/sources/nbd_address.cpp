#include "sources/nbd_address.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

namespace uffda::sources {

namespace {

constexpr std::string_view kDefaultPort = "10809";
constexpr std::size_t kMaxExportName = 4096;  // of the protocol
constexpr unsigned kMaxConnections = 64;
constexpr std::chrono::seconds kConnectTimeout{10};

std::unexpected<Error> wrong(const SourceUri& uri, std::string_view what) {
  const bool is_unix = uri.scheme().ends_with("+unix");
  return fail(Errc::invalid_argument, fmt::format("{0}: {1}; it is written {0}{2}", uri.scheme(), what,
                                                  is_unix ? ":///EXPORT?socket=PATH" : "://HOST[:PORT]/EXPORT"));
}

/// HOST, HOST:PORT, [IPv6] or [IPv6]:PORT.
Result<void> parse_host(std::string_view text, const SourceUri& uri, NbdAddress& address) {
  std::string_view after;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return wrong(uri, "an IPv6 address has no closing ']'");
    address.host = text.substr(1, end - 1);
    after = text.substr(end + 1);
  } else {
    const std::size_t colon = std::min(text.find(':'), text.size());
    address.host = text.substr(0, colon);
    after = text.substr(colon);
  }
  if (address.host.empty()) return wrong(uri, "the host is missing");
  address.port = after.empty() ? kDefaultPort : after.substr(1);
  const bool digits = std::ranges::all_of(address.port, [](char c) { return c >= '0' && c <= '9'; });
  if ((!after.empty() && after.front() != ':') || address.port.empty() || address.port.size() > 5 || !digits ||
      std::stoul(address.port) > 65535 || std::stoul(address.port) == 0)
    return wrong(uri, "the port is not a number from 1 to 65535");
  return {};
}

/// "//authority/export", or without the slash that begins the export.
Result<void> parse_rest(const SourceUri& uri, NbdAddress& address) {
  std::string_view rest = uri.rest();
  if (!rest.starts_with("//")) return wrong(uri, "'//' is missing");
  rest.remove_prefix(2);
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  std::string_view authority = rest.substr(0, slash);
  address.export_name = rest.substr(std::min(slash + 1, rest.size()));
  if (address.export_name.size() > kMaxExportName) return wrong(uri, "the export's name has more than 4096 bytes");
  if (const std::size_t at = authority.rfind('@'); at != std::string_view::npos) {
    address.user = authority.substr(0, at);
    authority.remove_prefix(at + 1);
    if (address.user.contains(':'))
      return wrong(uri, "NBD knows no passwords: tls-psk-file names the file with the user's key");
  }
  if (!uri.scheme().ends_with("+unix")) return parse_host(authority, uri, address);
  if (!authority.empty()) return wrong(uri, "a UNIX socket has no host");
  return {};
}

/// Unless it is switched off.
Result<bool> switched_on(const SourceUri& uri, std::string_view key) {
  const auto checked = uri.choice(key, {"on", "off", "true", "false"}, "on");
  if (!checked) return std::unexpected(checked.error());
  const std::string* const given = uri.find(key);
  return given == nullptr || *given == "on" || *given == "true";
}

Result<void> parse_tls(const SourceUri& uri, NbdAddress& address) {
  const auto text = [&](std::string_view key) {
    const std::string* const value = uri.find(key);
    return value != nullptr ? *value : std::string();
  };
  address.certificates = text("tls-certificates");
  address.psk_file = text("tls-psk-file");
  address.verify = UFFDA_TRY(switched_on(uri, "tls-verify-peer"));
  address.tls = uri.scheme().starts_with("nbds");
  if (!address.tls) {
    if (!address.certificates.empty() || !address.psk_file.empty())
      return wrong(uri, "tls-certificates and tls-psk-file are for nbds");
    return {};
  }
  if (!address.certificates.empty() && !address.psk_file.empty())
    return wrong(uri, "tls-certificates and tls-psk-file exclude each other");
  // A certificate is of a host, and a socket's path is none.
  if (address.host.empty() && address.psk_file.empty() && address.verify)
    return fail(Errc::unsupported,
                uri.scheme() +
                    ": the certificate of a server on a UNIX socket cannot be verified: use tls-psk-file, or take any "
                    "server with tls-verify-peer=off");
  // libnbd would do with an anonymous server then.
  if (address.certificates.empty() && address.psk_file.empty() && address.verify)
    return wrong(uri,
                 "nothing says which server to trust: tls-certificates=DIR with its ca-cert.pem, tls-psk-file=FILE, or "
                 "tls-verify-peer=off for any");
  return {};
}

std::string name_of(const SourceUri& uri, const NbdAddress& address) {
  if (address.host.empty()) return fmt::format("{}:///{}?socket={}", uri.scheme(), address.export_name, address.socket);
  const bool brackets = address.host.contains(':');
  const bool with_port = address.port != kDefaultPort;
  return fmt::format("{}://{}{}{}{}{}/{}", uri.scheme(), brackets ? "[" : "", address.host, brackets ? "]" : "",
                     with_port ? ":" : "", with_port ? std::string_view(address.port) : "", address.export_name);
}

}  // namespace

Result<NbdAddress> NbdAddress::from(const SourceUri& uri) {
  NbdAddress address;
  UFFDA_TRY_VOID(parse_rest(uri, address));
  const std::string* const socket = uri.find("socket");
  const bool is_unix = uri.scheme().ends_with("+unix");
  if (is_unix && (socket == nullptr || socket->empty())) return wrong(uri, "the parameter socket is missing");
  if (!is_unix && socket != nullptr) return wrong(uri, "the parameter socket is for nbd+unix and nbds+unix");
  if (is_unix) address.socket = *socket;
  UFFDA_TRY_VOID(parse_tls(uri, address));
  if (uri.find("connections") != nullptr) {
    const std::uint64_t count = UFFDA_TRY(uri.number("connections", 0));
    if (count == 0 || count > kMaxConnections) return wrong(uri, "connections is a number from 1 to 64");
    address.connections = static_cast<unsigned>(count);
  }
  address.zero_runs = UFFDA_TRY(switched_on(uri, "zero-runs"));
  address.connect_timeout = UFFDA_TRY(uri.duration("connect-timeout", kConnectTimeout));
  if (address.connect_timeout.count() == 0) return wrong(uri, "connect-timeout is more than 0");
  address.name = name_of(uri, address);
  return address;
}

}  // namespace uffda::sources
