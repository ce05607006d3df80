// How the http source asks: how many requests, over which connections, with whose credentials.
#include <fmt/format.h>

#include <array>
#include <atomic>
#include <fstream>
#include <vector>

#include "contract/http_support.h"

namespace uffda::test {
namespace {

using Request = FakeHttp::Request;
using Peer = FakeHttp::Peer;

TEST(HttpRequests, of_64_fetches_are_under_way_at_once) {
  FakeHttp* self = nullptr;
  // Nobody is answered before all have asked.
  FakeHttp server([&](const Request& request, const Peer& peer) {
    if (!request.probe() && !self->wait_for(65)) return false;
    return peer.send(FakeHttp::right(request));
  });
  self = &server;
  const auto source = opened(server.url() + "/x");
  const Buffer buffer(64 * 4096);
  std::array<Answer, 64> answers;
  for (std::size_t i = 0; i < 64; ++i)
    start_fetch(*source, answers[i], i * 8192, buffer.bytes().subspan(i * 4096, 4096));
  for (std::size_t i = 0; i < 64; ++i) {
    const auto done = answers[i].wait();
    ASSERT_TRUE(done.has_value()) << done.error().message();
    EXPECT_EQ(Pattern::mismatch(buffer.bytes().subspan(i * 4096, 4096), i * 8192), std::nullopt);
  }
  EXPECT_EQ(server.requests().size(), 65U);
}

TEST(HttpRequests, of_neighbours_that_are_queued_together_are_one) {
  const FakeHttp server([](const Request& request, const Peer& peer) { return peer.send(FakeHttp::right(request)); });
  const auto source = opened(server.url() + "/x");
  const Buffer buffer(65 * 4096);
  std::array<Answer, 33> answers;
  // Queued by an answer, that is while the source's thread is busy: it finds all of them at once, in odd order.
  answers[32].then = [&] {
    for (std::size_t i = 0; i < 32; ++i) {
      const std::size_t page = i * 13 % 32;
      start_fetch(*source, answers[i], 65536 + page * 4096, buffer.bytes().subspan(page * 4096, 4096));
    }
  };
  start_fetch(*source, answers[32], 0, buffer.bytes().subspan(std::size_t{64} * 4096, 4096));
  for (Answer& answer : answers) ASSERT_TRUE(answer.wait().has_value());
  EXPECT_EQ(Pattern::mismatch(buffer.bytes().first(std::size_t{32} * 4096), 65536), std::nullopt);
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 3U) << "the opening, the first page, the other 32";
  EXPECT_EQ(requests[2].range, (ByteRange{{65536}, {32 * 4096}}));
}

TEST(HttpRequests, give_each_neighbour_its_own_deadline) {
  std::atomic<int> count{0};
  // The first half of the two pages comes, the rest never.
  const FakeHttp server([&](const Request& request, const Peer& peer) {
    if (request.range.length.value < 8192 || count++ > 0) return peer.send(FakeHttp::right(request));
    const std::string whole = FakeHttp::right(request);
    peer.send(whole.substr(0, whole.size() - 100));
    peer.wait_for_end();
    return false;
  });
  const auto source = opened(server.url() + "/x");
  const Buffer buffer(3 * 4096);
  Answer first;
  Answer early;
  Answer late;
  first.then = [&] {
    start_fetch(*source, early, 8192, buffer.bytes().first(4096), within_ms(60000));
    start_fetch(*source, late, 12288, buffer.bytes().subspan(4096, 4096), within_ms(300));
  };
  start_fetch(*source, first, 0, buffer.bytes().subspan(8192, 4096));
  ASSERT_TRUE(early.wait().has_value()) << "answered as soon as its bytes are there";
  EXPECT_EQ(Pattern::mismatch(buffer.bytes().first(4096), 8192), std::nullopt);
  const auto done = late.wait();
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), Errc::timed_out);
}

TEST(HttpRequests, use_one_connection_again) {
  std::atomic<int> connections{0};
  const FakeHttp server([&](const Request& request, const Peer& peer) {
    thread_local bool counted = false;  // a thread is a connection
    if (!counted) ++connections;
    counted = true;
    return peer.send(FakeHttp::right(request));
  });
  const auto source = opened(server.url() + "/x");
  for (std::uint64_t i = 0; i < 20; ++i) expect_right(*source, i * 8192);
  EXPECT_EQ(connections.load(), 1);
}

TEST(HttpCredentials, stay_with_their_host_and_out_of_names) {
  const FakeHttp other([](const Request& request, const Peer& peer) { return peer.send(FakeHttp::right(request)); });
  const FakeHttp server([&](const Request&, const Peer& peer) {
    return peer.send(FakeHttp::status("302 Found", fmt::format("Location: {}/y\r\n", other.url())));
  });
  const auto source = opened(fmt::format("http://me:secret@127.0.0.1:{}/x%3Fsignature=hidden", server.port()));
  EXPECT_EQ(server.requests().back().header("authorization"), "Basic bWU6c2VjcmV0");
  EXPECT_EQ(server.requests().back().line, "GET /x?signature=hidden HTTP/1.1");
  EXPECT_EQ(other.requests().back().header("authorization"), "");
  EXPECT_EQ(source->name(), fmt::format("http://127.0.0.1:{}/x?...", server.port()));
}

TEST(HttpCredentials, come_from_netrc) {
  const PatternFile file(1);
  std::ofstream(file.beside(".netrc")) << "machine 127.0.0.1 login me password secret\n";
  const Variable home("HOME", file.beside(""));
  const FakeHttp server([](const Request& request, const Peer& peer) { return peer.send(FakeHttp::right(request)); });
  expect_right(*opened(server.url() + "/x"), 0);
  EXPECT_EQ(server.requests().back().header("authorization"), "Basic bWU6c2VjcmV0");
}

TEST(HttpCredentials, are_read_again_when_they_are_refused) {
  const PatternFile file(1);
  const auto write = [&](const std::string& token) { std::ofstream(file.beside("token")) << token << "\n"; };
  std::atomic<bool> renewed{false};
  const FakeHttp server([&](const Request& request, const Peer& peer) {
    const bool right = request.header("authorization") == (renewed ? "Bearer second" : "Bearer first");
    return peer.send(right ? FakeHttp::right(request) : FakeHttp::status("401 Unauthorized"));
  });
  write("first");
  const auto source = opened(server.url() + "/x?token-file=" + file.beside("token"));
  expect_right(*source, 65536);
  renewed = true;
  write("second");
  expect_right(*source, 65536);
  renewed = false;
  expect_failed(*source, Errc::permission_denied, "401");
  expect_refused(server.url() + "/x?token-file=" + file.beside("none"), Errc::not_found, "none");
}

TEST(HttpProxy, is_taken_from_the_environment) {
  const FakeHttp proxy([](const Request& request, const Peer& peer) { return peer.send(FakeHttp::right(request)); });
  const Variable variable("http_proxy", proxy.url());
  const Variable none("no_proxy", "");
  expect_right(*opened("http://object.invalid/x"), 65536);
  EXPECT_EQ(proxy.requests().back().line, "GET http://object.invalid/x HTTP/1.1");
}

}  // namespace
}  // namespace uffda::test
