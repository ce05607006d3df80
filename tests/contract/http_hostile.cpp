// The http source against servers that lie, stumble or say no. What nginx does right is in http_nginx.cpp.
#include <fmt/format.h>

#include <atomic>

#include "contract/http_support.h"

namespace uffda::test {
namespace {

using Request = FakeHttp::Request;
using Peer = FakeHttp::Peer;

/// Rightly at the opening, `answer` for everything else.
FakeHttp::Answer after_opening(std::function<bool(const Request&, const Peer&)> answer) {
  return [answer = std::move(answer)](const Request& request, const Peer& peer) {
    return request.probe() ? peer.send(FakeHttp::right(request)) : answer(request, peer);
  };
}

FakeHttp::Answer after_opening_say(const std::string& response) {
  return after_opening([response](const Request&, const Peer& peer) { return peer.send(response); });
}

std::string partial(const std::string& range, const std::string& more, const std::string& body) {
  return FakeHttp::status("206 Partial Content", "Content-Range: " + range + "\r\nETag: \"v1\"\r\n" + more, body);
}

const ByteRange kAsked{{65536}, {4096}};

TEST(HttpAnswer, another_range_than_asked_for_is_refused) {
  for (const std::string range :
       {"bytes 65537-69632/1048576", "bytes 65536-69630/1048576", "bytes 0-4095/1048576", "bytes 65536-69631/*",
        "bytes 69631-65536/1048576", "octets 65536-69631/1048576", ""}) {
    const FakeHttp server(after_opening_say(partial(range, "", FakeHttp::body(kAsked))));
    const auto source = opened(server.url() + "/x");
    expect_failed(*source, Errc::protocol, "ange");
  }
}

TEST(HttpAnswer, another_total_means_that_the_object_changed) {
  const FakeHttp server(after_opening_say(partial("bytes 65536-69631/1048577", "", FakeHttp::body(kAsked))));
  expect_failed(*opened(server.url() + "/x"), Errc::io, "another size");
}

TEST(HttpAnswer, more_bytes_than_asked_for_are_never_written) {
  const std::string body = FakeHttp::body({{65536}, {8192}});
  const std::string head =
      "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 65536-69631/1048576\r\nETag: \"v1\"\r\n";
  const std::string announced = fmt::format("{}Content-Length: 8192\r\n\r\n{}", head, body);
  const std::string chunked = fmt::format("{}Transfer-Encoding: chunked\r\n\r\n2000\r\n{}\r\n0\r\n\r\n", head, body);
  const std::string unending = fmt::format("{}Connection: close\r\n\r\n{}", head, body);
  for (const std::string& response : {announced, chunked, unending}) {
    const FakeHttp server(after_opening([&](const Request&, const Peer& peer) {
      peer.send(response);
      return false;
    }));
    expect_failed(*opened(server.url() + "/x"), Errc::protocol, "bytes");
  }
}

TEST(HttpAnswer, fewer_bytes_are_asked_for_again_and_never_made_up) {
  std::atomic<int> count{0};
  const FakeHttp server(after_opening([&](const Request& request, const Peer& peer) {
    const std::string whole = FakeHttp::right(request);
    peer.send(count++ < 3 ? whole.substr(0, whole.size() - 1000) : whole);
    return false;
  }));
  expect_right(*opened(server.url() + "/x"), 65536);
  EXPECT_EQ(count.load(), 4);

  const FakeHttp never(after_opening([&](const Request& request, const Peer& peer) {
    const std::string whole = FakeHttp::right(request);
    peer.send(whole.substr(0, whole.size() - 1));
    return false;
  }));
  expect_failed(*opened(never.url() + "/x"), Errc::timed_out, "before that", within_ms(500));
}

TEST(HttpAnswer, garbage_is_an_error) {
  const FakeHttp server(after_opening([](const Request&, const Peer& peer) {
    peer.send("\x01\x02\x03 what you asked for\r\n\r\n");
    return false;
  }));
  const auto source = opened(server.url() + "/x");
  const Buffer buffer(4096);
  EXPECT_FALSE(fetch(*source, 65536, buffer.bytes(), within_ms(500)).has_value());
}

TEST(HttpAnswer, headers_without_end_are_cut_off) {
  const FakeHttp server(after_opening([](const Request&, const Peer& peer) {
    peer.send("HTTP/1.1 206 Partial Content\r\n");
    while (peer.send("X-Filler: " + std::string(4000, 'x') + "\r\n")) {
    }
    return false;
  }));
  const auto source = opened(server.url() + "/x");
  const Buffer buffer(4096);
  const auto done = fetch(*source, 65536, buffer.bytes());
  ASSERT_FALSE(done.has_value());
  EXPECT_NE(done.error().code(), Errc::timed_out) << done.error().message();
}

TEST(HttpAnswer, an_encoding_is_refused) {
  const FakeHttp server(
      after_opening_say(partial("bytes 65536-69631/1048576", "Content-Encoding: gzip\r\n", FakeHttp::body(kAsked))));
  expect_failed(*opened(server.url() + "/x"), Errc::unsupported, "'gzip'");
  EXPECT_EQ(server.requests().back().header("accept-encoding"), "identity");
}

TEST(HttpAnswer, that_never_comes_ends_at_the_deadline) {
  const FakeHttp server(after_opening([](const Request&, const Peer& peer) {
    peer.wait_for_end();
    return false;
  }));
  const Buffer buffer(4096);
  Answer answer;
  {
    const auto source = opened(server.url() + "/x");
    expect_failed(*source, Errc::timed_out, "no answer in time", within_ms(200));
    // And one that is under way when the source goes is cancelled.
    start_fetch(*source, answer, 0, buffer.bytes());
  }
  EXPECT_EQ(answer.count(), 1);
  const auto done = answer.wait();
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), Errc::cancelled) << done.error().message();
}

TEST(HttpAnswer, a_request_that_stalls_is_made_anew) {
  std::atomic<int> count{0};
  const FakeHttp server(after_opening([&](const Request& request, const Peer& peer) {
    if (count++ > 0) return peer.send(FakeHttp::right(request));
    peer.send(FakeHttp::right(request).substr(0, 700));
    peer.wait_for_end();
    return false;
  }));
  expect_right(*opened(server.url() + "/x?stall=100ms"), 65536);
  EXPECT_EQ(count.load(), 2);
}

struct Said {
  std::string status;
  Errc code;
  std::string words;
};

TEST(HttpStatus, is_told_with_what_to_do) {
  const std::vector<Said> all = {
      {"401 Unauthorized", Errc::permission_denied, "netrc"},
      {"403 Forbidden", Errc::permission_denied, "may not read"},
      {"404 Not Found", Errc::not_found, "no such object"},
      {"410 Gone", Errc::not_found, "no such object"},
      {"412 Precondition Failed", Errc::io, "has changed"},
      {"416 Range Not Satisfiable", Errc::io, "has changed"},
      {"204 No Content", Errc::protocol, "instead of bytes"},
      {"304 Not Modified", Errc::io, "304"},
      {"501 Not Implemented", Errc::io, "501"},
  };
  for (const Said& said : all) {
    const FakeHttp server(after_opening_say(FakeHttp::status(said.status)));
    const auto source = opened(server.url() + "/x");
    expect_failed(*source, said.code, said.words);
    EXPECT_EQ(server.requests().size(), 2U) << said.status << ": asked once";
  }
}

TEST(HttpStatus, that_passes_is_asked_again) {
  for (const std::string status : {"429 Too Many Requests", "500 Internal Server Error", "502 Bad Gateway",
                                   "503 Slow Down", "504 Gateway Timeout", "408 Request Timeout"}) {
    std::atomic<int> count{0};
    const FakeHttp server(after_opening([&](const Request& request, const Peer& peer) {
      return peer.send(count++ < 2 ? FakeHttp::status(status, "Retry-After: 0\r\n") : FakeHttp::right(request));
    }));
    expect_right(*opened(server.url() + "/x"), 65536);
    EXPECT_EQ(count.load(), 3) << status;
  }
}

TEST(HttpStatus, that_does_not_pass_in_time_is_the_reason_given) {
  const FakeHttp server(after_opening_say(FakeHttp::status("503 Slow Down")));
  expect_failed(*opened(server.url() + "/x"), Errc::timed_out, "503", within_ms(400));
  // A server that names a time after the deadline is not waited for.
  const FakeHttp later(after_opening_say(FakeHttp::status("429 Too Many Requests", "Retry-After: 1000\r\n")));
  expect_failed(*opened(later.url() + "/x"), Errc::io, "too late");
}

TEST(HttpStatus, words_of_a_store_are_passed_on) {
  const FakeHttp server(after_opening_say(
      FakeHttp::status("403 Forbidden", "", "<Error><Code>AccessDenied</Code><Message>not\x01 you</Message></Error>")));
  expect_failed(*opened(server.url() + "/x"), Errc::permission_denied, "AccessDenied: not? you");
}

TEST(HttpStatus, at_the_opening_that_passes_is_asked_again) {
  const FakeHttp server([](const Request& request, const Peer& peer) {
    return peer.send(request.number < 2 ? FakeHttp::status("503 Slow Down") : FakeHttp::right(request));
  });
  expect_right(*opened(server.url() + "/x"), 0);
}

TEST(HttpOpen, refuses_what_cannot_be_served) {
  const auto say = [](const std::string& response) {
    return std::make_unique<FakeHttp>([response](const Request&, const Peer& peer) { return peer.send(response); });
  };
  const auto whole = say(FakeHttp::status("200 OK", "ETag: \"v1\"\r\n", "all of it"));
  expect_refused(whole->url() + "/x", Errc::unsupported, "copy the object");
  const auto empty = say(FakeHttp::status("416 No", "Content-Range: bytes */0\r\n"));
  expect_refused(empty->url() + "/x", Errc::invalid_argument, "is empty");
  const auto unknown = say(FakeHttp::status("206 OK", "Content-Range: bytes 0-0/*\r\nETag: \"v1\"\r\n", "x"));
  expect_refused(unknown->url() + "/x", Errc::protocol, "Content-Range");
  const auto missing = say(FakeHttp::status("404 Not Found"));
  expect_refused(missing->url() + "/x", Errc::not_found, "no such object");
  expect_refused("http://127.0.0.1:1/x", Errc::io, "127.0.0.1:1/x");
  expect_refused("http:x", Errc::invalid_argument, "expected http://");
  expect_refused("http://127.0.0.1:port/", Errc::invalid_argument, "not a URL");
  expect_refused(missing->url() + "/x?connections=0", Errc::invalid_argument, "1 to 256");
}

TEST(HttpOpen, follows_a_few_redirects_and_no_circle) {
  const FakeHttp server([](const Request& request, const Peer& peer) {
    const std::string to = request.line.starts_with("GET /a ") ? "/b" : "/c";
    if (request.line.starts_with("GET /c ")) return peer.send(FakeHttp::right(request));
    if (request.line.starts_with("GET /loop ")) return peer.send(FakeHttp::status("302 Found", "Location: /loop\r\n"));
    return peer.send(FakeHttp::status("302 Found", "Location: " + to + "\r\n"));
  });
  expect_right(*opened(server.url() + "/a"), 65536);
  expect_refused(server.url() + "/loop", Errc::protocol, "redirects");
}

TEST(HttpPin, is_asked_for_and_compared) {
  std::atomic<bool> changed{false};
  const FakeHttp server([&](const Request& request, const Peer& peer) {
    return peer.send(FakeHttp::right(request, changed ? "ETag: \"v2\"\r\n" : "ETag: \"v1\"\r\n"));
  });
  const auto source = opened(server.url() + "/x");
  expect_right(*source, 65536);
  EXPECT_EQ(server.requests().back().header("if-match"), "\"v1\"");
  changed = true;  // and this server does not know If-Match
  expect_failed(*source, Errc::io, "has changed");
}

TEST(HttpPin, is_the_date_where_the_tag_is_weak) {
  std::atomic<bool> changed{false};
  const FakeHttp server([&](const Request& request, const Peer& peer) {
    return peer.send(
        FakeHttp::right(request, changed ? "ETag: W/\"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:01 GMT\r\n"
                                         : "ETag: W/\"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"));
  });
  const auto source = opened(server.url() + "/x");
  expect_right(*source, 65536);
  EXPECT_EQ(server.requests().back().header("if-unmodified-since"), "Thu, 01 Jan 2026 00:00:00 GMT");
  EXPECT_EQ(server.requests().back().header("if-match"), "");
  changed = true;
  expect_failed(*source, Errc::io, "has changed");
}

TEST(HttpPin, is_insisted_on) {
  const FakeHttp server([](const Request& request, const Peer& peer) {
    return peer.send(FakeHttp::right(request, "ETag: W/\"1\"\r\n"));
  });
  expect_refused(server.url() + "/x", Errc::unsupported, "unpinned=on");
  expect_right(*opened(server.url() + "/x?unpinned=on"), 65536);
}

}  // namespace
}  // namespace uffda::test
