// A conversation without a socket: every request is answered, and what is wrong with it is said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "server/session.h"
#include "support/fake_handoff_backend.h"

namespace uffda::test {
namespace {

using handoff::Direction;
using handoff::Header;
using handoff::Packet;
using handoff::Type;
using testing::HasSubstr;

template <typename Message>
Message request(Type type) {
  Message message{};
  const Header header = make_header(type, Direction::request, sizeof(Message));
  std::memcpy(&message, &header, sizeof header);
  return message;
}

class HandoffSession : public testing::Test {
 protected:
  template <typename Message>
  Answer ask(const Message& message, os::UniqueFd descriptor = {}) {
    bytes_.assign(reinterpret_cast<const std::byte*>(&message), reinterpret_cast<const std::byte*>(&message + 1));
    return ask_bytes(std::move(descriptor));
  }
  Answer ask_bytes(os::UniqueFd descriptor = {}) {
    const auto header = handoff::check_header(bytes_);
    EXPECT_TRUE(header);
    return session_.handle({.header = *header, .bytes = bytes_, .descriptor = std::move(descriptor)});
  }
  template <typename Reply>
  static Reply as(const Answer& answer) {
    Reply reply{};
    EXPECT_EQ(answer.head.size(), sizeof reply);
    std::memcpy(&reply, answer.head.data(), std::min(answer.head.size(), sizeof reply));
    return reply;
  }
  static Error error_of(const Answer& answer) {
    const auto header = as<handoff::ErrorReply>(answer).header;
    return handoff::read_error_reply({.header = header, .bytes = answer.head, .descriptor = {}});
  }
  static void expect_error(const Answer& answer, Errc code, const std::string& text) {
    const Error error = error_of(answer);
    EXPECT_EQ(error.code(), code) << error.message();
    EXPECT_THAT(error.context(), HasSubstr(text));
    EXPECT_EQ(answer.then, Answer::Then::go_on);
  }
  static os::UniqueFd some_descriptor() { return os::UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }
  handoff::Token attach() {
    return as<handoff::AttachReply>(ask(request<handoff::AttachRequest>(Type::kAttach), some_descriptor())).token;
  }

  FakeHandoffBackend backend_;
  Session session_{backend_};
  std::vector<std::byte> bytes_;
};

TEST_F(HandoffSession, OpenAnswersSizeAndPageCache) {
  auto open = request<handoff::OpenRequest>(Type::kOpen);
  ASSERT_TRUE(handoff::put_name(open.name, "disk"));
  const Answer answer = ask(open);
  const auto reply = as<handoff::OpenReply>(answer);
  EXPECT_EQ(reply.size, FakeHandoffBackend::kSize);
  EXPECT_EQ(reply.folio_size, 4096U);
  EXPECT_TRUE(answer.passed);
  EXPECT_EQ(reply.header.type, static_cast<unsigned>(Type::kOpen) | handoff::kReply);
}

TEST_F(HandoffSession, AnUnknownExportIsNotFound) {
  auto open = request<handoff::OpenRequest>(Type::kOpen);
  ASSERT_TRUE(handoff::put_name(open.name, "other"));
  expect_error(ask(open), Errc::not_found, "'other'");
}

TEST_F(HandoffSession, ANameWithoutItsZeroIsRefused) {
  auto open = request<handoff::OpenRequest>(Type::kOpen);
  std::memset(open.name, 'x', sizeof open.name);
  expect_error(ask(open), Errc::protocol, "name");
}

TEST_F(HandoffSession, AnEmptyNameIsRefused) {
  expect_error(ask(request<handoff::OpenRequest>(Type::kOpen)), Errc::protocol, "name");
}

TEST_F(HandoffSession, AttachMapUnmap) {
  const handoff::Token token = attach();
  auto map = request<handoff::MapRequest>(Type::kMap);
  map.token = token;
  ASSERT_TRUE(handoff::put_name(map.name, "disk"));
  map.address = 0x7000'0000;
  map.length = 8192;
  map.offset = 4096;
  EXPECT_EQ(as<Header>(ask(map)).status, 0U);
  ASSERT_EQ(backend_.mapped.size(), 1U);
  EXPECT_EQ(backend_.mapped[0].place.offset.value, 4096U);
  auto unmap = request<handoff::UnmapRequest>(Type::kUnmap);
  unmap.token = token;
  unmap.address = 0x7000'0000;
  unmap.length = 8192;
  EXPECT_EQ(as<Header>(ask(unmap)).status, 0U);
  EXPECT_TRUE(backend_.mapped.empty());
}

TEST_F(HandoffSession, AClientMayChooseItsToken) {
  auto attach = request<handoff::AttachAsRequest>(Type::kAttachAs);
  expect_error(ask(attach, some_descriptor()), Errc::invalid_argument, "zeroes");
  EXPECT_TRUE(backend_.tokens.empty());
  attach.token.bytes[15] = 7;
  attach.token.bytes[0] = 1;
  const auto reply = as<handoff::AttachReply>(ask(attach, some_descriptor()));
  EXPECT_EQ(reply.token.bytes[15], 7);
  EXPECT_EQ(reply.header.type, static_cast<unsigned>(Type::kAttachAs) | handoff::kReply);
}

TEST_F(HandoffSession, ATakeoverNeedsAHolder) {
  expect_error(ask(request<Header>(Type::kTakeover)), Errc::unsupported, "holder");
  backend_.held = true;
  const Answer answer = ask(request<Header>(Type::kTakeover));
  EXPECT_EQ(answer.then, Answer::Then::hand_over);
  EXPECT_EQ(as<Header>(answer).status, 0U);
}

TEST_F(HandoffSession, AnAttachWithoutADescriptorIsRefused) {
  expect_error(ask(request<handoff::AttachRequest>(Type::kAttach)), Errc::invalid_argument, "userfaultfd");
}

TEST_F(HandoffSession, ADescriptorThatNobodyAskedForIsClosed) {
  os::UniqueFd extra = some_descriptor();
  const int number = extra.get();
  expect_error(ask(request<Header>(Type::kStats), std::move(extra)), Errc::protocol, "closed");
  EXPECT_EQ(::fcntl(number, F_GETFD), -1);
}

TEST_F(HandoffSession, AWrongTokenIsNotFound) {
  auto unmap = request<handoff::UnmapRequest>(Type::kUnmap);
  unmap.token.bytes[3] = 9;
  expect_error(ask(unmap), Errc::not_found, "token");
}

TEST_F(HandoffSession, ReadsAreCutAtTheEndAndBounded) {
  auto read = request<handoff::ReadRequest>(Type::kRead);
  ASSERT_TRUE(handoff::put_name(read.name, "disk"));
  read.length = handoff::kMaxRead;
  EXPECT_EQ(ask(read).tail.size(), handoff::kMaxRead);
  read.offset = FakeHandoffBackend::kSize - 10;
  const Answer tail = ask(read);
  EXPECT_EQ(tail.tail.size(), 10U);
  EXPECT_EQ(as<Header>(tail).size, sizeof(Header) + 10);
  read.offset = UINT64_MAX;
  EXPECT_TRUE(ask(read).tail.empty());
  read.length = handoff::kMaxRead + 1;
  expect_error(ask(read), Errc::invalid_argument, "at most");
}

TEST_F(HandoffSession, EveryRequestOfTheWrongSizeIsRefused) {
  for (const Type type :
       {Type::kOpen, Type::kAttach, Type::kMap, Type::kUnmap, Type::kRead, Type::kDevice, Type::kWatch, Type::kStats}) {
    for (const std::size_t size : {sizeof(Header) + 1, sizeof(Header) + 600}) {
      bytes_.assign(size, std::byte{0});
      const Header header = make_header(type, Direction::request, size);
      std::memcpy(bytes_.data(), &header, sizeof header);
      os::UniqueFd descriptor = type == Type::kAttach ? some_descriptor() : os::UniqueFd();
      expect_error(ask_bytes(std::move(descriptor)), Errc::protocol, "size");
    }
  }
  EXPECT_TRUE(backend_.tokens.empty());
}

TEST_F(HandoffSession, WhatIsNoRequestIsRefused) {
  expect_error(ask(request<Header>(Type::kNotice)), Errc::protocol, "no request");
  expect_error(ask(request<Header>(Type::kError)), Errc::protocol, "no request");
  expect_error(ask(request<Header>(static_cast<Type>(999))), Errc::protocol, "999");
  expect_error(ask(make_header(Type::kStats, Direction::reply, sizeof(Header))), Errc::protocol, "reply");
}

TEST_F(HandoffSession, AWatchTurnsTheConnection) {
  EXPECT_EQ(ask(request<Header>(Type::kWatch)).then, Answer::Then::watch);
}

TEST_F(HandoffSession, StatsAreText) {
  const Answer answer = ask(request<Header>(Type::kStats));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(answer.tail.data()), answer.tail.size()), "{}\n");
  backend_.report.assign(handoff::kMaxMessage, 'x');
  expect_error(ask(request<Header>(Type::kStats)), Errc::no_memory, "report");
}

TEST_F(HandoffSession, ABackendsErrorArrivesWithItsWords) {
  expect_error(ask(request<Header>(Type::kDevice)), Errc::permission_denied, "no device here");
}

TEST_F(HandoffSession, ARefusalEndsTheConversation) {
  const Answer answer = session_.refuse(Error(Errc::protocol, "no packet"));
  EXPECT_EQ(answer.then, Answer::Then::close);
  EXPECT_EQ(error_of(answer).context(), "no packet");
}

}  // namespace
}  // namespace uffda::test
