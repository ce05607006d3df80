// NBD servers that are silent, lie, or break off: an error that says what to do, never a hang, never wrong bytes.
#include <gtest/gtest.h>

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <mutex>
#include <vector>

#include "contract/source_contract.h"
#include "support/nbd_server.h"
#include "support/test_support.h"

namespace uffda::test {
namespace {

using Client = FakeNbdServer::Client;
using Read = FakeNbdServer::Read;

constexpr std::uint64_t kBlock = 4096;

class NbdServer : public testing::Test {
 protected:
  std::string socket() const { return file_.beside("socket"); }
  std::unique_ptr<PageSource> open(FakeNbdServer::Script script, const std::string& parameters = {}) {
    server_.reset();
    server_ = std::make_unique<FakeNbdServer>(socket(), std::move(script));
    auto source = open_source(server_->uri() + parameters);
    EXPECT_TRUE(source.has_value()) << source.error().message();
    return source ? std::move(*source) : nullptr;
  }
  void expect_refused(FakeNbdServer::Script script, Errc code, const std::string& words,
                      const std::string& parameters = {}) {
    server_.reset();
    server_ = std::make_unique<FakeNbdServer>(socket(), std::move(script));
    const auto source = open_source(server_->uri() + parameters);
    ASSERT_FALSE(source.has_value()) << words;
    EXPECT_EQ(source.error().code(), code) << source.error().message();
    EXPECT_NE(source.error().context().find(words), std::string::npos) << source.error().context();
  }

  PatternFile file_{0};  // for its directory
  std::unique_ptr<FakeNbdServer> server_;
};

std::vector<std::byte> garbage(std::size_t length) {
  std::vector<std::byte> bytes(length);
  for (std::size_t i = 0; i < length; ++i) bytes[i] = std::byte(i * 37 + 11);
  return bytes;
}

TEST_F(NbdServer, that_says_nothing_is_given_up) {
  expect_refused({.greet =
                      [](Client& client, unsigned) {
                        // Until the client has gone.
                        std::byte byte{};
                        (void)::recv(client.fd(), &byte, 1, 0);
                        return false;
                      }},
                 Errc::timed_out, "no answer within 0.1 s: is an NBD server there", "&connect-timeout=100ms");
}

TEST_F(NbdServer, that_closes_at_once_is_named) {
  expect_refused({.greet =
                      [](Client& client, unsigned) {
                        client.close();
                        return false;
                      }},
                 Errc::protocol, "is it an NBD server");
}

TEST_F(NbdServer, that_speaks_something_else_is_named) {
  for (const std::size_t length : {1U, 8U, 18U, 152U, 5000U}) {
    expect_refused({.greet =
                        [length](Client& client, unsigned) {
                          client.send(garbage(length));
                          client.close();
                          return false;
                        }},
                   Errc::protocol, "is it an NBD server");
  }
}

TEST_F(NbdServer, that_wants_tls_is_named) { expect_refused({.needs_tls = true}, Errc::permission_denied, "nbds:"); }

TEST_F(NbdServer, with_an_empty_export_or_an_absurd_one_is_refused) {
  expect_refused({.size = 0}, Errc::invalid_argument, "is empty");
  expect_refused({.size = ~std::uint64_t{0}}, Errc::protocol, "no size that can be");
}

TEST_F(NbdServer, gets_64_fetches_before_it_has_answered_one) {
  constexpr std::size_t kFetches = 64;
  std::mutex mutex;
  std::vector<std::pair<Client, Read>> held;
  FakeNbdServer::Script script;
  script.size = kFetches * kBlock;
  script.several_connections = true;
  script.read = [&](Client& client, const Read& read) {
    const std::lock_guard lock(mutex);
    held.emplace_back(client, read);
    if (held.size() < kFetches) return;
    for (const auto& [asker, one] : held) asker.answer(one);
  };
  for (const std::string parameters : {"", "&connections=1"}) {
    held.clear();
    script.structured = parameters.empty();
    const auto source = open(script, parameters);
    ASSERT_NE(source, nullptr);
    std::vector<Buffer> buffers;
    for (std::size_t i = 0; i < kFetches; ++i) buffers.emplace_back(kBlock);
    std::array<Answer, kFetches> answers;
    for (std::size_t i = 0; i < kFetches; ++i) start_fetch(*source, answers.at(i), i * kBlock, buffers[i].bytes());
    for (std::size_t i = 0; i < kFetches; ++i) {
      ASSERT_TRUE(answers.at(i).wait().has_value());
      EXPECT_EQ(Pattern::mismatch(buffers[i].bytes(), i * kBlock), std::nullopt);
    }
  }
}

TEST_F(NbdServer, that_never_answers_a_read_fails_it_at_the_deadline_and_keeps_its_hands_off_the_buffer) {
  // The answer to the first read comes when the second one is asked for, on another connection by then.
  std::mutex mutex;
  std::vector<std::pair<Client, Read>> held;
  FakeNbdServer::Script script;
  script.read = [&](Client& client, const Read& read) {
    const std::lock_guard lock(mutex);
    held.emplace_back(client, read);
    if (held.size() > 1) {
      for (const auto& [asker, one] : held) asker.answer(one);
    }
  };
  const auto source = open(script);
  ASSERT_NE(source, nullptr);
  const Buffer first(kBlock);
  const auto done = fetch(*source, 0, first.bytes(), Deadline::after(std::chrono::milliseconds(200)));
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), Errc::timed_out);
  std::ranges::fill(first.bytes(), std::byte{0x77});
  const Buffer second(kBlock);
  const auto then = fetch(*source, kBlock, second.bytes());
  ASSERT_TRUE(then.has_value()) << then.error().message();
  EXPECT_EQ(Pattern::mismatch(second.bytes(), kBlock), std::nullopt);
  EXPECT_TRUE(std::ranges::all_of(first.bytes(), [](std::byte byte) { return byte == std::byte{0x77}; }));
  EXPECT_EQ(server_->connections(), 2U);
}

TEST_F(NbdServer, that_breaks_off_is_asked_again_on_the_next_connection) {
  const std::function<void(Client&, const Read&)> ways[] = {
      [](Client& client, const Read&) { client.close(); },
      [](Client& client, const Read&) { client.send(garbage(64)); },
      [](Client& client, const Read& read) {
        client.answer(Read{read.handle + 1000, read.offset, read.length});  // nobody asked
      },
      [](Client& client, const Read& read) {
        client.answer_in_part(Read{read.handle, read.offset + read.length, read.length}, read.length);  // elsewhere
      },
      [](Client& client, const Read& read) { client.refuse(read, ESHUTDOWN); },
  };
  for (const auto& way : ways) {
    std::atomic<unsigned> reads{0};
    FakeNbdServer::Script script;
    script.read = [&](Client& client, const Read& read) {
      if (reads++ < 3) {
        way(client, read);
      } else {
        client.answer(read);
      }
    };
    const auto source = open(script);
    ASSERT_NE(source, nullptr);
    const Buffer buffer(kBlock);
    const auto done = fetch(*source, 8192, buffer.bytes());
    ASSERT_TRUE(done.has_value()) << done.error().message();
    EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 8192), std::nullopt);
    EXPECT_GE(reads.load(), 4U);
  }
}

TEST_F(NbdServer, whose_answer_misses_bytes_is_not_believed) {
  FakeNbdServer::Script script;
  script.read = [](Client& client, const Read& read) { client.answer_in_part(read, read.length / 2); };
  const auto source = open(script);
  ASSERT_NE(source, nullptr);
  const Buffer buffer(kBlock);
  const auto done = fetch(*source, 0, buffer.bytes(), Deadline::after(std::chrono::seconds(1)));
  EXPECT_FALSE(done.has_value());
}

TEST_F(NbdServer, whose_answer_is_an_error_is_quoted) {
  FakeNbdServer::Script script;
  script.read = [](Client& client, const Read& read) { client.refuse(read, EIO); };
  for (const bool structured : {true, false}) {
    script.structured = structured;
    const auto source = open(script);
    ASSERT_NE(source, nullptr);
    const Buffer buffer(kBlock);
    const auto done = fetch(*source, 0, buffer.bytes());
    ASSERT_FALSE(done.has_value());
    EXPECT_EQ(done.error().code(), Errc::io);
    EXPECT_NE(done.error().message().find("Input/output error"), std::string::npos) << done.error().message();
    EXPECT_GT(server_->reads(), 1U) << "it is asked again before it is believed";
  }
}

TEST_F(NbdServer, that_comes_back_with_another_size_fails_everything) {
  FakeNbdServer::Script script;
  script.size_of = [](unsigned connection) { return connection == 0 ? 1U << 20U : 1U << 19U; };
  script.read = [](Client& client, const Read&) { client.close(); };
  const auto source = open(script);
  ASSERT_NE(source, nullptr);
  const Buffer buffer(kBlock);
  for (int i = 0; i < 2; ++i) {
    const auto done = fetch(*source, 0, buffer.bytes());
    ASSERT_FALSE(done.has_value());
    EXPECT_EQ(done.error().code(), Errc::io);
    EXPECT_NE(done.error().context().find("has 524288 bytes now"), std::string::npos) << done.error().context();
  }
  EXPECT_FALSE(source->extents({{0}, {kBlock}}).has_value());
}

TEST_F(NbdServer, whose_block_status_is_nonsense_does_no_harm) {
  const std::vector<FakeNbdServer::Extent> answers[] = {
      {{0, 0}},
      {{0, 2}, {4096, 0}},
      {{~std::uint32_t{0}, 0}},
      {{4096, ~std::uint32_t{0} & ~2U}, {~std::uint32_t{0}, 0}},
      {{1, 0}, {1, 0}, {1, 0}},
  };
  for (const auto& extents : answers) {
    FakeNbdServer::Script script;
    script.extents = [&](const Read&) { return extents; };
    const auto source = open(script);
    ASSERT_NE(source, nullptr);
    const Buffer buffer(kBlock);
    for (std::uint64_t offset = 0; offset < 16 * kBlock; offset += kBlock) {
      const auto done = fetch(*source, offset, buffer.bytes());
      ASSERT_TRUE(done.has_value()) << done.error().message();
      ASSERT_EQ(Pattern::mismatch(buffer.bytes(), offset), std::nullopt);
    }
    std::uint64_t at = 0;
    for (int steps = 0; steps < 50 && at < 16 * kBlock; ++steps) {
      const auto known = source->extents({{at}, {16 * kBlock - at}});
      ASSERT_TRUE(known.has_value()) << known.error().message();
      ASSERT_FALSE(known->empty());
      at = known->back().range.end().value;
    }
  }
}

TEST_F(NbdServer, whose_zeroes_are_known_is_not_asked_for_them) {
  FakeNbdServer::Script script;
  script.extents = [](const Read& question) {
    constexpr std::uint32_t kHalf = 1U << 19U;
    if (question.offset >= kHalf) return std::vector<FakeNbdServer::Extent>{{kHalf, 3}};
    return std::vector<FakeNbdServer::Extent>{{kHalf, 0}, {kHalf, 3}};
  };
  const auto source = open(script);
  ASSERT_NE(source, nullptr);
  const auto known = source->extents({{1U << 19U}, {1U << 19U}});
  ASSERT_TRUE(known.has_value()) << known.error().message();
  ASSERT_EQ(known->front().kind, Extent::Kind::zero);
  const Buffer buffer(kBlock);
  for (std::uint64_t offset = 1U << 19U; offset < 1U << 20U; offset += kBlock) {
    ASSERT_TRUE(fetch(*source, offset, buffer.bytes()).has_value());
    ASSERT_TRUE(std::ranges::all_of(buffer.bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
  }
  EXPECT_EQ(server_->reads(), 0U);
  EXPECT_EQ(server_->questions(), 1U);
}

}  // namespace
}  // namespace uffda::test
