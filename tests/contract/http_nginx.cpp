// The http source and nginx: objects that change, servers that die and come back, TLS and HTTP/2.
#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "contract/http_support.h"
#include "support/nginx.h"

namespace uffda::test {
namespace {

class HttpNginx : public testing::Test {
 protected:
  /// False: skipped.
  bool start(Nginx::Speaks speaks, const std::string& more = {}) {
    auto nginx = Nginx::start({.directory = directory(), .root = directory(), .speaks = speaks, .more = more});
    if (!nginx) {
      [&] { GTEST_SKIP() << nginx.error().message(); }();
      return false;
    }
    nginx_ = std::move(*nginx);
    return true;
  }
  [[nodiscard]] std::string directory() const { return std::filesystem::path(file_.path()).parent_path(); }
  [[nodiscard]] std::string uri(const std::string& path = "/data") const {
    return nginx_->url() + path + "?" + nginx_->parameters();
  }

  PatternFile file_{kSourceBytes};
  std::unique_ptr<Nginx> nginx_;
};

TEST_F(HttpNginx, an_object_that_is_replaced_is_an_error_and_never_mixed) {
  if (!start(Nginx::Speaks::http1)) return;
  const auto source = opened(uri());
  expect_right(*source, 0);
  const std::string other = file_.beside("other");
  std::ofstream(other) << std::string(kSourceBytes, 'n');
  // nginx makes an ETag of date and size, the date in seconds.
  std::filesystem::last_write_time(other, std::filesystem::last_write_time(other) + std::chrono::seconds(2));
  std::filesystem::rename(other, file_.path());
  expect_failed(*source, Errc::io, "has changed since it was opened");
  const auto again = opened(uri());
  const Buffer buffer(4096);
  ASSERT_TRUE(fetch(*again, 4096, buffer.bytes()).has_value());
  EXPECT_EQ(buffer.bytes()[17], std::byte{'n'});
}

TEST_F(HttpNginx, a_server_that_is_back_before_the_deadline_was_never_missed) {
  if (!start(Nginx::Speaks::http1)) return;
  const auto source = opened(uri());
  expect_right(*source, 0);
  nginx_->kill();
  const Buffer buffer(64 * 4096);
  std::array<Answer, 64> answers;
  for (std::size_t i = 0; i < 64; ++i)
    start_fetch(*source, answers[i], i * 8192, buffer.bytes().subspan(i * 4096, 4096));
  const auto restarted = nginx_->restart();
  ASSERT_TRUE(restarted.has_value()) << restarted.error().message();
  for (std::size_t i = 0; i < 64; ++i) {
    const auto done = answers[i].wait();
    ASSERT_TRUE(done.has_value()) << done.error().message();
    EXPECT_EQ(Pattern::mismatch(buffer.bytes().subspan(i * 4096, 4096), i * 8192), std::nullopt);
  }
}

TEST_F(HttpNginx, a_server_that_dies_in_the_middle_of_an_answer_is_not_missed_either) {
  if (!start(Nginx::Speaks::http1, "location /slow { alias " + file_.path() + "; limit_rate 100k; }")) return;
  const auto source = opened(uri("/slow"));
  const Buffer buffer(150000);
  Answer answer;
  start_fetch(*source, answer, 4096, buffer.bytes());
  // Once the first bytes are in the buffer, the answer is under way.
  const auto* const begun = reinterpret_cast<const volatile unsigned char*>(buffer.bytes().data() + 1000);
  const Deadline patience = soon();
  while (*begun == 0xA5 && !patience.passed()) std::this_thread::yield();
  nginx_->kill();
  ASSERT_TRUE(nginx_->restart().has_value());
  const auto done = answer.wait();
  ASSERT_TRUE(done.has_value()) << done.error().message();
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 4096), std::nullopt);
}

TEST_F(HttpNginx, a_server_that_does_not_come_back_is_an_error_at_the_deadline) {
  if (!start(Nginx::Speaks::http1)) return;
  const auto source = opened(uri());
  nginx_->kill();
  expect_failed(*source, Errc::timed_out, "before that", within_ms(400));
  expect_failed(*source, Errc::timed_out, "before that", within_ms(400));
}

TEST_F(HttpNginx, http2_carries_64_fetches_over_one_connection) {
  if (!start(Nginx::Speaks::https2)) return;
  const auto source = opened(uri());
  const Buffer buffer(64 * 4096);
  std::array<Answer, 64> answers;
  for (std::size_t i = 0; i < 64; ++i)
    start_fetch(*source, answers[i], i * 8192, buffer.bytes().subspan(i * 4096, 4096));
  for (Answer& answer : answers) ASSERT_TRUE(answer.wait().has_value());
  std::istringstream lines(nginx_->log());
  std::set<std::string> connections;
  std::string protocol;
  std::string connection;
  std::string rest;
  while (lines >> protocol >> connection && std::getline(lines, rest)) {
    EXPECT_EQ(protocol, "HTTP/2.0");
    connections.insert(connection);
  }
  EXPECT_EQ(connections.size(), 1U);
}

TEST_F(HttpNginx, a_certificate_is_verified) {
  if (!start(Nginx::Speaks::https2)) return;
  expect_refused(nginx_->url() + "/data", Errc::permission_denied, "cafile=");
  expect_refused(nginx_->url() + "/data?cafile=/no/such/file", Errc::invalid_argument, "/no/such/file");
  const Variable variable("SSL_CERT_FILE", nginx_->parameters().substr(std::string("cafile=").size()));
  expect_right(*opened(nginx_->url() + "/data"), 0);
}

TEST_F(HttpNginx, https_is_never_left_for_http) {
  const FakeHttp plain(
      [](const FakeHttp::Request& request, const FakeHttp::Peer& peer) { return peer.send(FakeHttp::right(request)); });
  if (!start(Nginx::Speaks::https1, fmt::format("location /down {{ return 302 {}/x; }}", plain.url()))) return;
  expect_refused(uri("/down"), Errc::protocol, "https is never left for http");
  EXPECT_TRUE(plain.requests().empty());
}

TEST_F(HttpNginx, names_are_taken_as_they_are_written) {
  if (!start(Nginx::Speaks::http1)) return;
  for (const std::string name : {"with blank", "per%cent", "question?mark", "h#sh", "\xC3\xA4+=:&"}) {
    std::filesystem::copy_file(file_.path(), file_.beside(name));
    std::string escaped;
    // Once for the URL, and the '%' of that once more for uffda.
    for (const unsigned char c : name)
      escaped += std::isalnum(c) != 0 ? std::string(1, static_cast<char>(c)) : fmt::format("%25{:02X}", c);
    expect_right(*opened(uri("/" + escaped)), 4096);
  }
  expect_right(*opened(uri("/with blank")), 4096);
}

}  // namespace
}  // namespace uffda::test
