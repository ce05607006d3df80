#include "server/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

namespace uffda {

using handoff::Direction;
using handoff::Header;
using handoff::Packet;
using handoff::Type;

namespace {

static_assert(sizeof(handoff::MapRequest) <= Session::kMaxRequest);
static_assert(sizeof(handoff::ReadRequest) <= Session::kMaxRequest);

Result<void> check_only_header(const Packet& packet) {
  UFFDA_TRY_VOID(handoff::parse<Header>(packet));
  return {};
}

}  // namespace

template <typename Message>
Answer Session::answer(const Message& message) {
  static_assert(std::is_trivially_copyable_v<Message> && sizeof(Message) <= sizeof(reply_));
  std::memcpy(reply_.data(), &message, sizeof message);
  return {.head = std::span<const std::byte>(reply_).first(sizeof message), .tail = {}, .passed = {}};
}

Answer Session::done(Type type) { return answer(make_header(type, Direction::reply, sizeof(Header))); }

Answer Session::with_tail(Type type, std::span<const std::byte> tail) {
  Answer answered = answer(make_header(type, Direction::reply, sizeof(Header) + tail.size()));
  answered.tail = tail;
  return answered;
}

Answer Session::handle(Packet packet) {
  auto answered = dispatch(packet);
  if (answered) return std::move(*answered);
  return answer(handoff::make_error_reply(answered.error()));
}

Answer Session::refuse(const Error& error) {
  Answer answered = answer(handoff::make_error_reply(error));
  answered.then = Answer::Then::close;
  return answered;
}

Result<Answer> Session::dispatch(Packet& packet) {
  if (packet.is_reply()) return fail(Errc::protocol, "a reply came where a request belongs");
  if (packet.descriptor && packet.type() != Type::kAttach && packet.type() != Type::kAttachAs) {
    return fail(Errc::protocol, "only an Attach carries a descriptor; this one was closed");
  }
  switch (packet.type()) {
    case Type::kOpen:
      return open(packet);
    case Type::kAttach:
      return attach(packet, UFFDA_TRY(handoff::parse<handoff::AttachRequest>(packet)).features, {});
    case Type::kAttachAs:
      return attach_as(packet);
    case Type::kMap:
    case Type::kMapShared:
      return map(packet);
    case Type::kWrite:
      return write(packet);
    case Type::kSync:
      return sync(packet);
    case Type::kSize:
      return size(packet);
    case Type::kUnmap:
      return unmap(packet);
    case Type::kRead:
      return read(packet);
    case Type::kDevice:
      return device(packet);
    case Type::kWatch:
      return watch(packet);
    case Type::kStats:
      return stats(packet);
    case Type::kTakeover:
      return take_over(packet);
    case Type::kNotice:
    case Type::kError:
      break;
  }
  return fail(Errc::protocol, fmt::format("a packet of type {} is no request", packet.header.type));
}

Result<Answer> Session::open(const Packet& packet) {
  const auto request = UFFDA_TRY(handoff::parse<handoff::OpenRequest>(packet));
  const std::string name = UFFDA_TRY(handoff::get_name(request.name));
  auto opened = UFFDA_TRY(backend_.open_export(name));
  handoff::OpenReply reply{};
  reply.header = make_header(Type::kOpen, Direction::reply, sizeof reply);
  reply.size = opened.size.value;
  reply.folio_size = static_cast<std::uint32_t>(opened.folio_size.value);
  reply.flags = opened.writable ? handoff::kWritable : 0;
  Answer answered = answer(reply);
  answered.passed = os::UniqueFd(opened.cache.release());
  return answered;
}

Result<Answer> Session::attach_as(Packet& packet) {
  const auto request = UFFDA_TRY(handoff::parse<handoff::AttachAsRequest>(packet));
  if (std::ranges::all_of(request.token.bytes, [](std::uint8_t byte) { return byte == 0; }))
    return fail(Errc::invalid_argument, "a token of the client's choice is random, and not all zeroes");
  return attach(packet, request.features, request.token);
}

Result<Answer> Session::attach(Packet& packet, std::uint64_t features, const handoff::Token& wanted) {
  if (!packet.descriptor) return fail(Errc::invalid_argument, "an Attach came without a userfaultfd");
  handoff::AttachReply reply{};
  reply.header = make_header(packet.type(), Direction::reply, sizeof reply);
  HandoffBackend::Attach request{.userfaultfd = std::move(packet.descriptor), .features = features, .wanted = wanted};
  if (auto peer = os::open_peer(socket_)) request.process = *std::move(peer);
  reply.token = UFFDA_TRY(backend_.attach(std::move(request)));
  return answer(reply);
}

Result<Answer> Session::map(const Packet& packet) {
  const auto request = UFFDA_TRY(handoff::parse<handoff::MapRequest>(packet));
  const std::string name = UFFDA_TRY(handoff::get_name(request.name));
  const HandoffBackend::MapPlace place{
      .address = {request.address}, .length = {request.length}, .offset = {request.offset}};
  const bool shared = packet.type() == Type::kMapShared;
  UFFDA_TRY_VOID(shared ? backend_.map_shared(request.token, name, place) : backend_.map(request.token, name, place));
  return done(packet.type());
}

Result<Answer> Session::write(const Packet& packet) {
  handoff::WriteRequest request{};
  if (packet.bytes.size() < sizeof request) return fail(Errc::protocol, "a packet has the wrong size for its type");
  std::memcpy(&request, packet.bytes.data(), sizeof request);
  const std::string name = UFFDA_TRY(handoff::get_name(request.name));
  const std::span<const std::byte> bytes = packet.bytes.subspan(sizeof request);
  if (bytes.size() > handoff::kMaxWrite) {
    return fail(Errc::invalid_argument,
                fmt::format("a Write of {} bytes: at most {} at once", bytes.size(), handoff::kMaxWrite));
  }
  UFFDA_TRY_VOID(backend_.write(name, {request.offset}, bytes));
  return done(Type::kWrite);
}

Result<Answer> Session::sync(const Packet& packet) {
  const auto request = UFFDA_TRY(handoff::parse<handoff::SyncRequest>(packet));
  const std::string name = UFFDA_TRY(handoff::get_name(request.name));
  handoff::SyncReply reply{};
  reply.header = make_header(Type::kSync, Direction::reply, sizeof reply);
  reply.failures = request.seen;
  const Result<void> synced =
      backend_.sync(name, {.start = {request.offset}, .length = {request.length}}, reply.failures);
  if (!synced) {
    reply.error = 1 + static_cast<std::uint32_t>(synced.error().code());
    handoff::put_text(reply.text, synced.error().message());
  }
  return answer(reply);
}

Result<Answer> Session::size(const Packet& packet) {
  const auto request = UFFDA_TRY(handoff::parse<handoff::SizeRequest>(packet));
  const std::string name = UFFDA_TRY(handoff::get_name(request.name));
  const bool grows = (request.flags & handoff::kGrowOnly) != 0;
  const auto how = grows ? HandoffBackend::Resize::grow : HandoffBackend::Resize::exactly;
  handoff::SizeReply reply{};
  reply.header = make_header(Type::kSize, Direction::reply, sizeof reply);
  reply.size = UFFDA_TRY(backend_.resize(name, request.size, how)).value;
  return answer(reply);
}

Result<Answer> Session::unmap(const Packet& packet) {
  const auto request = UFFDA_TRY(handoff::parse<handoff::UnmapRequest>(packet));
  UFFDA_TRY_VOID(backend_.unmap(request.token, {request.address}, {request.length}));
  return done(Type::kUnmap);
}

Result<Answer> Session::read(const Packet& packet) {
  const auto request = UFFDA_TRY(handoff::parse<handoff::ReadRequest>(packet));
  const std::string name = UFFDA_TRY(handoff::get_name(request.name));
  if (request.length > handoff::kMaxRead) {
    return fail(Errc::invalid_argument,
                fmt::format("a Read of {} bytes: at most {} at once", request.length, handoff::kMaxRead));
  }
  if (!read_buffer_) read_buffer_ = std::make_unique_for_overwrite<std::array<std::byte, handoff::kMaxRead>>();
  const auto buffer = std::span(*read_buffer_).first(request.length);
  const std::size_t size = UFFDA_TRY(backend_.read(name, {request.offset}, buffer));
  return with_tail(Type::kRead, buffer.first(size));
}

Result<Answer> Session::device(const Packet& packet) {
  UFFDA_TRY_VOID(check_only_header(packet));
  auto device = UFFDA_TRY(backend_.open_device());
  Answer answered = done(Type::kDevice);
  answered.passed = os::UniqueFd(device.release());
  return answered;
}

Result<Answer> Session::watch(const Packet& packet) {
  UFFDA_TRY_VOID(check_only_header(packet));
  Answer answered = done(Type::kWatch);
  answered.then = Answer::Then::watch;
  return answered;
}

Result<Answer> Session::take_over(const Packet& packet) {
  UFFDA_TRY_VOID(check_only_header(packet));
  UFFDA_TRY_VOID(backend_.prepare_takeover());
  Answer answered = done(Type::kTakeover);
  answered.then = Answer::Then::hand_over;
  return answered;
}

Result<Answer> Session::stats(const Packet& packet) {
  UFFDA_TRY_VOID(check_only_header(packet));
  text_ = UFFDA_TRY(backend_.stats());
  if (text_.size() > handoff::kMaxMessage - sizeof(Header))
    return fail(Errc::no_memory, "the report does not fit into a packet");
  return with_tail(Type::kStats, std::as_bytes(std::span(text_)));
}

}  // namespace uffda
