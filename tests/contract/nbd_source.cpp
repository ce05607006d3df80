// What is particular to NBD sources, on real servers: nbdkit with its filters, and qemu-nbd.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "contract/source_contract.h"
#include "support/nbd_server.h"
#include "support/test_support.h"
#include "uffda/source_registry.h"

namespace uffda::test {
namespace {

constexpr std::uint64_t kBytes = std::uint64_t{8} << 20U;

/// A file of the pattern and an nbdkit that serves it, or something else.
class NbdSource : public testing::Test {
 protected:
  void serve(std::vector<std::string> arguments) {
    auto server = Nbdkit::start(file_.beside("socket"), std::move(arguments));
    if (!server && server.error().code() == Errc::unsupported) GTEST_SKIP() << server.error().message();
    ASSERT_TRUE(server.has_value()) << server.error().message();
    server_.emplace(std::move(*server));
  }
  /// With filters and then their parameters.
  void serve_file(std::vector<std::string> filters = {}) {
    const auto parameter = std::ranges::find_if(filters, [](const std::string& one) { return !one.starts_with("--"); });
    filters.insert(parameter, {"file", file_.path()});
    serve(std::move(filters));
  }

  static std::unique_ptr<PageSource> open(const std::string& uri) {
    auto source = open_source(uri);
    EXPECT_TRUE(source.has_value()) << source.error().message();
    return source ? std::move(*source) : nullptr;
  }
  static Error open_error(const std::string& uri) {
    const auto source = open_source(uri);
    EXPECT_FALSE(source.has_value()) << uri;
    return source ? Error(Errc::io) : source.error();
  }

  /// Whether the source gives the pattern, read in pieces.
  static void expect_pattern(PageSource& source, std::uint64_t piece = kPiece) {
    const Buffer buffer(piece);
    for (std::uint64_t offset = 0; offset < source.properties().size.value; offset += piece) {
      const auto bytes = buffer.bytes().first(std::min(piece, source.properties().size.value - offset));
      const auto done = fetch(source, offset, bytes);
      ASSERT_TRUE(done.has_value()) << done.error().message();
      ASSERT_EQ(Pattern::mismatch(bytes, offset), std::nullopt);
    }
  }

  PatternFile file_{kBytes};
  std::optional<Nbdkit> server_;
};

TEST_F(NbdSource, splits_reads_to_the_longest_that_the_server_takes) {
  serve_file({"--filter=blocksize-policy", "blocksize-minimum=1", "blocksize-preferred=4096", "blocksize-maximum=65536",
              "blocksize-error-policy=error"});
  const auto source = open(server_->uri());
  ASSERT_NE(source, nullptr);
  expect_pattern(*source, 1U << 20U);
}

TEST_F(NbdSource, reads_whole_blocks_for_parts_of_them) {
  serve_file({"--filter=blocksize-policy", "blocksize-minimum=32768", "blocksize-preferred=32768",
              "blocksize-maximum=65536", "blocksize-error-policy=error"});
  const auto source = open(server_->uri());
  ASSERT_NE(source, nullptr);
  EXPECT_EQ(source->properties().unit.value, 32768U);
  EXPECT_EQ(source->properties().block_size.value, 1U);
  expect_pattern(*source, 4096);
  const Buffer buffer(200000);
  for (const auto& [offset, length] : {std::pair{1U, 1U}, {32767U, 2U}, {40000U, 200000U}, {8388607U, 1U}}) {
    const auto bytes = buffer.bytes().first(length);
    ASSERT_TRUE(fetch(*source, offset, bytes).has_value());
    EXPECT_EQ(Pattern::mismatch(bytes, offset), std::nullopt) << offset;
  }
}

TEST_F(NbdSource, tells_which_ranges_are_zeroes_and_does_not_read_them) {
  // 1 MiB of data, 2 MiB of nothing, data again. Reads of the nothing would fail.
  serve({"--filter=error", "data", "@0x100000 1 @0x300000 2 @0x3fffff 3", "error-pread=EIO", "error-pread-rate=100%"});
  const auto source = open(server_->uri());
  ASSERT_NE(source, nullptr);
  std::vector<Extent> all;
  const std::uint64_t size = source->properties().size.value;
  for (std::uint64_t at = 0; at < size;) {
    const auto some = source->extents({{at}, {size - at}});
    ASSERT_TRUE(some.has_value()) << some.error().message();
    ASSERT_FALSE(some->empty());
    EXPECT_EQ(some->front().range.start.value, at);
    for (const Extent& extent : *some) all.push_back(extent);
    at = all.back().range.end().value;
  }
  EXPECT_EQ(std::ranges::count(all, Extent::Kind::data, &Extent::kind), 3);
  EXPECT_EQ(all.front().kind, Extent::Kind::zero);
  const Buffer buffer(kPiece);
  ASSERT_TRUE(fetch(*source, 0x200000, buffer.bytes()).has_value());
  EXPECT_TRUE(std::ranges::all_of(buffer.bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
  const auto read = fetch(*source, 0x300000, buffer.bytes());
  ASSERT_FALSE(read.has_value());
  EXPECT_EQ(read.error().code(), Errc::io);
  EXPECT_NE(read.error().context().find("the server cannot read 65536 bytes at 3145728"), std::string::npos)
      << read.error().context();
}

TEST_F(NbdSource, asks_again_when_the_server_cannot_read_for_a_moment) {
  // The first reads fail while the file is there; the last of them takes it away.
  const std::string trigger = file_.beside("failing");
  std::ofstream(trigger).close();
  serve_file({"--filter=error", "error-pread=EIO", "error-pread-rate=100%", "error-pread-file=" + trigger});
  const auto source = open(server_->uri() + "&zero-runs=off");
  ASSERT_NE(source, nullptr);
  const Buffer buffer(kPiece);
  Answer answer;
  start_fetch(*source, answer, 0, buffer.bytes());
  std::filesystem::remove(trigger);
  const auto done = answer.wait();
  ASSERT_TRUE(done.has_value()) << done.error().message();
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 0), std::nullopt);
}

TEST_F(NbdSource, sees_no_error_when_the_server_is_killed_and_comes_back_within_the_deadline) {
  serve_file();
  const auto source = open(server_->uri());
  ASSERT_NE(source, nullptr);
  constexpr std::size_t kAtOnce = 16;
  constexpr std::size_t kPieces = kBytes / kPiece;
  std::vector<Buffer> buffers;
  for (std::size_t i = 0; i < kPieces; ++i) buffers.emplace_back(kPiece);
  std::array<Answer, kPieces> answers;
  for (std::size_t i = 0; i < kPieces; ++i) {
    if (i >= kAtOnce) {
      ASSERT_TRUE(answers.at(i - kAtOnce).wait().has_value()) << answers.at(i - kAtOnce).wait().error().message();
    }
    start_fetch(*source, answers.at(i), i * kPiece, buffers[i].bytes());
    if (i % 32 == 20) {
      server_->kill();
      ASSERT_TRUE(server_->restart().has_value());
    }
  }
  for (std::size_t i = 0; i < kPieces; ++i) {
    const auto done = answers.at(i).wait();
    ASSERT_TRUE(done.has_value()) << done.error().message();
    EXPECT_EQ(answers.at(i).count(), 1);
    EXPECT_EQ(Pattern::mismatch(buffers[i].bytes(), i * kPiece), std::nullopt);
  }
}

TEST_F(NbdSource, fails_at_the_deadline_when_the_server_does_not_come_back) {
  serve_file();
  const auto source = open(server_->uri());
  ASSERT_NE(source, nullptr);
  server_->kill();
  const Buffer buffer(kPiece);
  const Deadline deadline = Deadline::after(std::chrono::milliseconds(500));
  const auto done = fetch(*source, 0, buffer.bytes(), deadline);
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), Errc::timed_out);
  EXPECT_TRUE(deadline.passed()) << "it was given up early";
  EXPECT_NE(done.error().context().find("nobody listens there"), std::string::npos) << done.error().context();
  // And it is not broken for good.
  ASSERT_TRUE(server_->restart().has_value());
  ASSERT_TRUE(fetch(*source, 0, buffer.bytes()).has_value());
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 0), std::nullopt);
}

TEST_F(NbdSource, fails_for_good_when_another_size_comes_back) {
  serve_file();
  const auto source = open(server_->uri());
  ASSERT_NE(source, nullptr);
  server_->kill();
  ASSERT_TRUE(server_->restart({"--filter=truncate", "file", file_.path(), "truncate=4M"}).has_value());
  const Buffer buffer(kPiece);
  const auto done = fetch(*source, 0, buffer.bytes());
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), Errc::io);
  EXPECT_NE(done.error().context().find("has 4194304 bytes now and had 8388608"), std::string::npos)
      << done.error().context();
}

TEST_F(NbdSource, keeps_a_server_that_ends_with_its_last_client) {
  serve_file({"--filter=exitlast"});
  const auto source = open(server_->uri());
  ASSERT_NE(source, nullptr);
  expect_pattern(*source);
}

TEST_F(NbdSource, lists_the_exports_when_the_wanted_one_is_not_there) {
  serve_file({"--filter=exportname", "exportname=disk", "exportname=other", "exportname-strict=true",
              "exportname-list=explicit"});
  const Error error = open_error(server_->uri("dis%6B2"));
  EXPECT_EQ(error.code(), Errc::not_found) << error.message();
  EXPECT_NE(error.context().find("there is no export 'disk2'; the server has 'disk', 'other'"), std::string::npos)
      << error.context();
  const auto source = open(server_->uri("dis%6B"));
  ASSERT_NE(source, nullptr);
  EXPECT_EQ(source->name(), "nbd+unix:///disk?socket=" + server_->socket());
}

TEST_F(NbdSource, says_what_to_do_when_nobody_listens) {
  const Error socket = open_error("nbd+unix:///?socket=" + file_.beside("nothing"));
  EXPECT_EQ(socket.code(), Errc::io);
  EXPECT_NE(socket.context().find("nobody listens there"), std::string::npos) << socket.context();
  EXPECT_NE(socket.context().find("start the server"), std::string::npos) << socket.context();
  const Error port = open_error("nbd://127.0.0.1:" + std::to_string(free_port()) + "/");
  EXPECT_NE(port.context().find("nobody listens there"), std::string::npos) << port.context();
}

TEST_F(NbdSource, refuses_several_connections_to_a_server_that_does) {
  serve_file({"--filter=multi-conn", "multi-conn-mode=disable"});
  const Error error = open_error(server_->uri() + "&connections=2");
  EXPECT_EQ(error.code(), Errc::unsupported);
  EXPECT_NE(error.context().find("leave out connections="), std::string::npos) << error.context();
  EXPECT_NE(open(server_->uri() + "&connections=1"), nullptr);
}

TEST_F(NbdSource, reads_what_qemu_serves) {
  for (const std::string format : {"raw", "qcow2"}) {
    const std::string image = file_.beside("image." + format);
    const std::string socket = file_.beside(format + ".socket");
    auto converted = ChildProcess::start({"qemu-img", "convert", "-O", format, file_.path(), image});
    if (!converted) GTEST_SKIP() << converted.error().message();
    ASSERT_EQ(converted->wait(soon()).value_or(-1), 0);
    auto grown = ChildProcess::start({"qemu-img", "resize", "-f", format, image, "16M"});
    ASSERT_TRUE(grown.has_value() && grown->wait(soon()).value_or(-1) == 0);
    // With --shared 1, the default, a second connection is never answered: the first one has to do.
    for (const std::string shared : {"1", "8"}) {
      auto server = ChildProcess::start({"qemu-nbd", "--read-only", "--persistent", "--shared", shared, "--format",
                                         format, "--socket", socket, "--export-name", "a/b c", image});
      ASSERT_TRUE(server.has_value()) << server.error().message();
      ASSERT_TRUE(wait_for_socket(socket, soon()).has_value());
      const auto source = open("nbd+unix:///a/b%20c?connect-timeout=1s&socket=" + socket);
      ASSERT_NE(source, nullptr);
      ASSERT_EQ(source->properties().size.value, 2 * kBytes);
      const Buffer buffer(kPiece);
      for (std::uint64_t offset = 0; offset < 2 * kBytes; offset += kPiece) {
        ASSERT_TRUE(fetch(*source, offset, buffer.bytes()).has_value());
        if (offset < kBytes) {
          ASSERT_EQ(Pattern::mismatch(buffer.bytes(), offset), std::nullopt);
        } else {
          ASSERT_TRUE(std::ranges::all_of(buffer.bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
        }
      }
      const auto extents = source->extents({{kBytes}, {kBytes}});
      ASSERT_TRUE(extents.has_value()) << extents.error().message();
      EXPECT_EQ(extents->front().kind, Extent::Kind::zero);
    }
  }
}

/// Certificates in the places where GnuTLS looks for them: an authority, and a server of it that goes by `host`.
class NbdTls : public NbdSource {
 protected:
  void SetUp() override {
    if (std::system("openssl version >/dev/null 2>&1") != 0) GTEST_SKIP() << "needs openssl";
    make_authority("ours");
    make_authority("other");
  }

  void make_authority(const std::string& name) {
    const std::string at = file_.beside(name);
    std::filesystem::create_directory(at);
    run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=" + name +
        "-ca -keyout " + at + "/ca-key.pem -out " + at + "/ca-cert.pem");
  }
  void make_server(const std::string& authority, const std::string& host) {
    const std::string at = file_.beside(authority);
    std::ofstream(at + "/extensions") << "subjectAltName=DNS:" << host << '\n';
    run("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=" + host + " -keyout " + at +
        "/server-key.pem -out " + at + "/server.csr");
    run("openssl x509 -req -days 2 -CAcreateserial -in " + at + "/server.csr -CA " + at + "/ca-cert.pem -CAkey " + at +
        "/ca-key.pem -extfile " + at + "/extensions -out " + at + "/server-cert.pem");
  }
  static void run(const std::string& command) {
    ASSERT_EQ(std::system((command + " >/dev/null 2>&1").c_str()), 0) << command;
  }

  void serve_tls(const std::string& certificates) {
    port_ = free_port();
    auto process = ChildProcess::start({"nbdkit", "--foreground", "--readonly", "--ipaddr", "127.0.0.1", "--port",
                                        std::to_string(port_), "--tls=require",
                                        "--tls-certificates=" + file_.beside(certificates), "file", file_.path()});
    if (!process) GTEST_SKIP() << process.error().message();
    ASSERT_TRUE(wait_for_port(port_, soon()).has_value());
    process_.emplace(std::move(*process));
  }
  [[nodiscard]] std::string uri(const std::string& scheme, const std::string& parameters) const {
    return scheme + "://localhost:" + std::to_string(port_) + "/" + parameters;
  }
  void expect_refused(const std::string& uri, const std::string& words) {
    const Error error = open_error(uri);
    EXPECT_EQ(error.code(), Errc::permission_denied) << error.message();
    EXPECT_NE(error.context().find(words), std::string::npos) << error.context();
  }

  int port_ = 0;
  std::optional<ChildProcess> process_;
};

TEST_F(NbdTls, reads_from_a_server_that_its_certificate_proves) {
  make_server("ours", "localhost");
  serve_tls("ours");
  const auto source = open(uri("nbds", "?tls-certificates=" + file_.beside("ours")));
  ASSERT_NE(source, nullptr);
  expect_pattern(*source);
}

TEST_F(NbdTls, refuses_a_server_of_another_authority_or_of_another_name) {
  make_server("ours", "localhost");
  serve_tls("ours");
  expect_refused(uri("nbds", "?tls-certificates=" + file_.beside("other")), "tls-certificates names the directory");
  EXPECT_EQ(open_error(uri("nbds", "")).code(), Errc::invalid_argument) << "whom to trust?";
  EXPECT_NE(open(uri("nbds", "?tls-verify-peer=off&tls-certificates=" + file_.beside("other"))), nullptr);
  make_server("other", "elsewhere.example");
  serve_tls("other");
  expect_refused(uri("nbds", "?tls-certificates=" + file_.beside("other")), "tls-certificates names the directory");
}

TEST_F(NbdTls, says_that_a_server_wants_tls_or_has_none) {
  make_server("ours", "localhost");
  serve_tls("ours");
  expect_refused(uri("nbd", ""), "the address is nbds:");
  serve_file();
  const std::string keys = file_.beside("keys.psk");
  std::ofstream(keys) << "alice:6bc2a1f4c9d2b6f0a1b2c3d4e5f60718\n";
  expect_refused("nbds+unix://alice@/?socket=" + server_->socket() + "&tls-psk-file=" + keys, "TLS");
}

}  // namespace
}  // namespace uffda::test
