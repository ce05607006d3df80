#include "sources/nbd_address.h"

#include <gtest/gtest.h>

namespace uffda::sources {
namespace {

Result<NbdAddress> parse(const std::string& text) {
  const auto uri = parse_source_uri(text);
  if (!uri) return std::unexpected(uri.error());
  return NbdAddress::from(*uri);
}

TEST(NbdAddress, has_host_port_and_export) {
  struct Case {
    std::string uri, host, port, export_name, name;
  };
  const Case cases[] = {
      {"nbd://host", "host", "10809", "", "nbd://host/"},
      {"nbd://host/", "host", "10809", "", "nbd://host/"},
      {"nbd://host:10809/disk", "host", "10809", "disk", "nbd://host/disk"},
      {"nbd://host:7/a/b%20%3Fc%25", "host", "7", "a/b ?c%", "nbd://host:7/a/b ?c%"},
      {"nbd://127.0.0.1:65535//x", "127.0.0.1", "65535", "/x", "nbd://127.0.0.1:65535//x"},
      {"nbd://[::1]/x", "::1", "10809", "x", "nbd://[::1]/x"},
      {"nbds://[fe80::1]:99/x?tls-certificates=/c", "fe80::1", "99", "x", "nbds://[fe80::1]:99/x"},
      {"delay+nbd://host/x", "host", "10809", "x", "nbd://host/x"},
  };
  for (const Case& one : cases) {
    const auto address = parse(one.uri);
    ASSERT_TRUE(address.has_value()) << one.uri << ": " << address.error().message();
    EXPECT_EQ(address->host, one.host);
    EXPECT_EQ(address->port, one.port);
    EXPECT_EQ(address->export_name, one.export_name);
    EXPECT_EQ(address->name, one.name);
    EXPECT_TRUE(address->socket.empty());
    EXPECT_EQ(address->tls, one.uri.starts_with("nbds"));
    EXPECT_TRUE(address->verify);
    EXPECT_FALSE(address->connections.has_value());
  }
}

TEST(NbdAddress, has_a_socket) {
  const auto address =
      parse("log+nbd+unix:///disk%2F1?socket=/run/a%26b&connections=7&connect-timeout=250ms&zero-runs=off");
  ASSERT_TRUE(address.has_value()) << address.error().message();
  EXPECT_EQ(address->socket, "/run/a&b");
  EXPECT_EQ(address->export_name, "disk/1");
  EXPECT_EQ(address->host, "");
  EXPECT_EQ(address->connections, 7U);
  EXPECT_EQ(address->connect_timeout, std::chrono::milliseconds(250));
  EXPECT_FALSE(address->zero_runs);
}

TEST(NbdAddress, does_not_show_the_user) {
  const auto address = parse("nbds://alice@host/x?tls-psk-file=/keys");
  ASSERT_TRUE(address.has_value()) << address.error().message();
  EXPECT_EQ(address->user, "alice");
  EXPECT_EQ(address->psk_file, "/keys");
  EXPECT_EQ(address->name, "nbds://host/x");
}

TEST(NbdAddress, says_what_is_wrong_with_it) {
  const std::pair<const char*, const char*> cases[] = {
      {"nbd:host/x", "'//' is missing"},
      {"nbd:///x", "the host is missing"},
      {"nbd://:10809/x", "the host is missing"},
      {"nbd://host:/x", "the port is not a number"},
      {"nbd://host:0/x", "the port is not a number"},
      {"nbd://host:65536/x", "the port is not a number"},
      {"nbd://host:99999999999/x", "the port is not a number"},
      {"nbd://host:8o/x", "the port is not a number"},
      {"nbd://[::1/x", "no closing ']'"},
      {"nbd://[::1]7/x", "the port is not a number"},
      {"nbd://host/x?socket=/s", "is for nbd+unix"},
      {"nbd+unix:///x", "the parameter socket is missing"},
      {"nbd+unix://host/x?socket=/s", "a UNIX socket has no host"},
      {"nbd://host/x?connections=0", "from 1 to 64"},
      {"nbd://host/x?connections=65", "from 1 to 64"},
      {"nbd://host/x?connect-timeout=0", "more than 0"},
      {"nbd://host/x?tls-certificates=/c", "are for nbds"},
      {"nbds://host/x?tls-certificates=/c&tls-psk-file=/k", "exclude each other"},
      {"nbds://alice:secret@host/x", "NBD knows no passwords"},
      {"nbds+unix:///x?socket=/s", "cannot be verified"},
      {"nbds://host/x", "nothing says which server to trust"},
  };
  for (const auto& [uri, words] : cases) {
    const auto address = parse(uri);
    ASSERT_FALSE(address.has_value()) << uri;
    EXPECT_NE(address.error().context().find(words), std::string::npos) << uri << ": " << address.error().context();
    EXPECT_EQ(address.error().context().find("secret"), std::string::npos);
  }
  EXPECT_TRUE(parse("nbds+unix:///x?socket=/s&tls-verify-peer=off").has_value());
  EXPECT_FALSE(parse("nbd://host/" + std::string(4097, 'x')).has_value());
}

}  // namespace
}  // namespace uffda::sources
