// A peer that sends anything: whatever comes, a session answers each packet with one well-formed packet, and the
// backend sees only names, sizes and descriptors that the protocol allows.
//
// Input: packets, each with a byte of flags and two of length in front. Flag 1: the header is put right (so that the
// interesting part is reached); flag 2: a descriptor travels along.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "../tests/support/fake_handoff_backend.h"
#include "server/session.h"

namespace {

using uffda::handoff::Header;
using uffda::handoff::Packet;
using uffda::handoff::Type;

constexpr unsigned kFixHeader = 1;
constexpr unsigned kWithDescriptor = 2;

void fix_header(std::span<std::byte> packet) {
  if (packet.size() < sizeof(Header)) return;
  Header header{};
  std::memcpy(&header, packet.data(), sizeof header);
  header.magic = uffda::handoff::kMagic;
  header.version = uffda::handoff::kVersion;
  header.type = static_cast<std::uint16_t>(header.type % 12U);
  header.size = static_cast<std::uint32_t>(packet.size());
  std::memcpy(packet.data(), &header, sizeof header);
}

void check_answer(const uffda::Answer& answer, const Header& request) {
  Header header{};
  UFFDA_ASSERT(answer.head.size() >= sizeof header);
  std::memcpy(&header, answer.head.data(), sizeof header);
  UFFDA_ASSERT(header.magic == uffda::handoff::kMagic && header.version == uffda::handoff::kVersion);
  UFFDA_ASSERT(header.size == answer.head.size() + answer.tail.size() && header.size <= uffda::handoff::kMaxMessage);
  const auto error = static_cast<unsigned>(Type::kError);
  UFFDA_ASSERT(header.type == error || header.type == (request.type | uffda::handoff::kReply));
  UFFDA_ASSERT((header.type == error) == (header.status != 0));
  if (header.type == error) {
    (void)uffda::handoff::read_error_reply(Packet{.header = header, .bytes = answer.head, .descriptor = {}});
  }
}

void handle(uffda::Session& session, std::span<std::byte> bytes, unsigned flags) {
  if ((flags & kFixHeader) != 0) fix_header(bytes);
  const auto header = uffda::handoff::check_header(bytes);
  if (!header) {
    UFFDA_ASSERT(session.refuse(header.error()).then == uffda::Answer::Then::close);
    return;
  }
  uffda::os::UniqueFd descriptor((flags & kWithDescriptor) != 0 ? ::open("/dev/null", O_RDONLY | O_CLOEXEC) : -1);
  check_answer(session.handle({.header = *header, .bytes = bytes, .descriptor = std::move(descriptor)}), *header);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  uffda::test::FakeHandoffBackend backend;
  uffda::Session session(backend);
  std::span<const std::uint8_t> input(data, size);
  std::array<std::byte, uffda::Session::kMaxRequest> buffer;
  while (input.size() >= 3) {
    const unsigned flags = input[0];
    const std::size_t length = std::min<std::size_t>({input[1] + 256U * input[2], input.size() - 3, buffer.size()});
    std::memcpy(buffer.data(), input.data() + 3, length);
    input = input.subspan(3 + length);
    handle(session, std::span(buffer).first(length), flags);
  }
  return 0;
}
