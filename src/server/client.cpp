#include "server/client.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace uffda {

using handoff::Direction;
using handoff::Header;
using handoff::Packet;
using handoff::Type;

HandoffClient::HandoffClient(std::string path, Duration wait)
    : path_(std::move(path)), wait_(wait), buffer_(std::make_unique_for_overwrite<Buffer>()) {}

Result<HandoffClient> HandoffClient::connect(std::string path, Duration wait) {
  HandoffClient client(std::move(path), wait);
  client.socket_ = UFFDA_TRY(handoff::connect_socket(client.path_, Deadline::after(wait)));
  return client;
}

Result<Packet> HandoffClient::ask_bytes(std::span<const std::byte> request, std::span<const std::byte> tail, Type type,
                                        int passed) {
  const Deadline deadline = Deadline::after(wait_);
  if (!socket_) socket_ = UFFDA_TRY(handoff::connect_socket(path_, deadline));
  Result<Packet> answer = handoff::ask_server(socket_, path_, request, tail, passed, *buffer_, deadline);
  if (answer && answer->type() == Type::kError) return std::unexpected(handoff::read_error_reply(*answer));
  if (answer && (!answer->is_reply() || answer->type() != type)) {
    answer = fail(Errc::protocol, "the answer is of another type than the request");
  }
  if (!answer) {
    socket_.reset();
    return std::unexpected(answer.error().within("the server at " + path_));
  }
  return answer;
}

template <typename Request>
Result<Packet> HandoffClient::ask(const Request& request, int passed) {
  Header header;
  std::memcpy(&header, &request, sizeof header);
  return ask_bytes(std::as_bytes(std::span(&request, 1)), {}, static_cast<Type>(header.type), passed);
}

Result<RemoteExport> HandoffClient::open(std::string_view name) {
  handoff::OpenRequest request{};
  request.header = make_header(Type::kOpen, Direction::request, sizeof request);
  UFFDA_TRY_VOID(handoff::put_name(request.name, name));
  Packet answer = UFFDA_TRY(ask(request));
  const auto reply = UFFDA_TRY(handoff::parse<handoff::OpenReply>(answer));
  if (!answer.descriptor) return fail(Errc::protocol, "the server sent no page cache with the export");
  if (reply.folio_size == 0 || reply.folio_size % kPageSize.value != 0) {
    return fail(Errc::protocol, "the server sent an impossible folio size");
  }
  return RemoteExport{.name = std::string(name),
                      .size = {reply.size},
                      .folio_size = {reply.folio_size},
                      .writable = (reply.flags & handoff::kWritable) != 0,
                      .cache = std::move(answer.descriptor)};
}

Result<std::size_t> HandoffClient::read(std::string_view name, ByteOffset offset, std::span<std::byte> buffer) {
  handoff::ReadRequest request{};
  request.header = make_header(Type::kRead, Direction::request, sizeof request);
  UFFDA_TRY_VOID(handoff::put_name(request.name, name));
  std::size_t done = 0;
  while (done < buffer.size()) {
    const std::size_t wanted = std::min<std::size_t>(buffer.size() - done, handoff::kMaxRead);
    request.offset = offset.value + done;
    request.length = static_cast<std::uint32_t>(wanted);
    const Packet answer = UFFDA_TRY(ask(request));
    const auto bytes = answer.body();
    if (bytes.size() > wanted) return fail(Errc::protocol, "the server sent more bytes than were asked for");
    std::memcpy(buffer.data() + done, bytes.data(), bytes.size());
    done += bytes.size();
    if (bytes.size() < wanted) break;
  }
  return done;
}

Result<handoff::Token> HandoffClient::attach(int userfaultfd, std::uint64_t features) {
  handoff::AttachAsRequest request{};
  request.header = make_header(Type::kAttachAs, Direction::request, sizeof request);
  request.features = features;
  if (::getrandom(request.token.bytes, sizeof request.token.bytes, 0) !=
      static_cast<ssize_t>(sizeof request.token.bytes))
    return fail_errno(errno, "getrandom");
  const Packet answer = UFFDA_TRY(ask(request, userfaultfd));
  return UFFDA_TRY(handoff::parse<handoff::AttachReply>(answer)).token;
}

Result<void> HandoffClient::map(const handoff::Token& token, std::string_view name, Address address, ByteCount length,
                                ByteOffset offset) {
  return map_as(Type::kMap, token, name, {.start = {address.value}, .length = length}, offset);
}

Result<void> HandoffClient::map_shared(const handoff::Token& token, std::string_view name, Address address,
                                       ByteCount length, ByteOffset offset) {
  return map_as(Type::kMapShared, token, name, {.start = {address.value}, .length = length}, offset);
}

Result<void> HandoffClient::write(std::string_view name, ByteOffset offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::span<const std::byte> part = bytes.first(std::min<std::size_t>(bytes.size(), handoff::kMaxWrite));
    handoff::WriteRequest request{};
    request.header = make_header(Type::kWrite, Direction::request, sizeof request + part.size());
    UFFDA_TRY_VOID(handoff::put_name(request.name, name));
    request.offset = offset.value;
    const Packet answer = UFFDA_TRY(ask_bytes(std::as_bytes(std::span(&request, 1)), part, Type::kWrite, -1));
    UFFDA_TRY_VOID(handoff::parse<Header>(answer));
    offset = offset + ByteCount{part.size()};
    bytes = bytes.subspan(part.size());
  }
  return {};
}

Result<std::uint64_t> HandoffClient::failures_told(std::string_view name) {
  std::uint64_t seen = 0;
  UFFDA_TRY_VOID(sync(name, {}, seen));
  return seen;
}

Result<ByteCount> HandoffClient::resize(std::string_view name, ByteCount length, Resize how) {
  handoff::SizeRequest request{};
  request.header = make_header(Type::kSize, Direction::request, sizeof request);
  UFFDA_TRY_VOID(handoff::put_name(request.name, name));
  request.size = length.value;
  request.flags = how == Resize::grow ? handoff::kGrowOnly : 0;
  const Packet answer = UFFDA_TRY(ask(request));
  return ByteCount{UFFDA_TRY(handoff::parse<handoff::SizeReply>(answer)).size};
}

Result<void> HandoffClient::sync(std::string_view name, ByteRange range, std::uint64_t& seen) {
  handoff::SyncRequest request{};
  request.header = make_header(Type::kSync, Direction::request, sizeof request);
  UFFDA_TRY_VOID(handoff::put_name(request.name, name));
  request.offset = range.start.value;
  request.length = range.length.value;
  request.seen = seen;
  const Packet answer = UFFDA_TRY(ask(request));
  const auto reply = UFFDA_TRY(handoff::parse<handoff::SyncReply>(answer));
  seen = reply.failures;
  if (reply.error == 0) return {};
  if (reply.error > 1 + static_cast<std::uint32_t>(Errc::protocol))
    return fail(Errc::protocol, "an error that does not exist");
  return fail(static_cast<Errc>(reply.error - 1), handoff::get_text(reply.text));
}

Result<void> HandoffClient::map_as(Type type, const handoff::Token& token, std::string_view name, ByteRange place,
                                   ByteOffset offset) {
  handoff::MapRequest request{};
  request.header = make_header(type, Direction::request, sizeof request);
  request.token = token;
  UFFDA_TRY_VOID(handoff::put_name(request.name, name));
  request.address = place.start.value;
  request.length = place.length.value;
  request.offset = offset.value;
  const Packet answer = UFFDA_TRY(ask(request));
  UFFDA_TRY_VOID(handoff::parse<Header>(answer));
  return {};
}

Result<void> HandoffClient::unmap(const handoff::Token& token, Address address, ByteCount length) {
  handoff::UnmapRequest request{};
  request.header = make_header(Type::kUnmap, Direction::request, sizeof request);
  request.token = token;
  request.address = address.value;
  request.length = length.value;
  const Packet answer = UFFDA_TRY(ask(request));
  UFFDA_TRY_VOID(handoff::parse<Header>(answer));
  return {};
}

Result<os::UniqueFd> HandoffClient::device() {
  Packet answer = UFFDA_TRY(ask(make_header(Type::kDevice, Direction::request, sizeof(Header))));
  if (!answer.descriptor) return fail(Errc::protocol, "the server sent no descriptor");
  return std::move(answer.descriptor);
}

Result<void> HandoffClient::watch() {
  UFFDA_TRY_VOID(ask(make_header(Type::kWatch, Direction::request, sizeof(Header))));
  return {};
}

Result<handoff::Notice> HandoffClient::next_notice(Deadline deadline) {
  if (!socket_) return fail(Errc::gone, "the connection to the server at " + path_ + " is closed");
  auto packet = handoff::receive_packet(socket_.get(), *buffer_, deadline);
  if (!packet) {
    if (packet.error().code() != Errc::timed_out) socket_.reset();
    return std::unexpected(packet.error().within("the server at " + path_));
  }
  if (packet->type() != Type::kNotice) return fail(Errc::protocol, "the server sent something else than a notice");
  return handoff::parse<handoff::Notice>(*packet);
}

Result<std::string> HandoffClient::stats() {
  const Packet answer = UFFDA_TRY(ask(make_header(Type::kStats, Direction::request, sizeof(Header))));
  const auto text = answer.body();
  return std::string(reinterpret_cast<const char*>(text.data()), text.size());
}

}  // namespace uffda
