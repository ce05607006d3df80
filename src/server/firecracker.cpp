#include "server/firecracker.h"

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "os/socket.h"
#include "server/firecracker_handshake.h"

namespace uffda::firecracker {
namespace {

constexpr Duration kHandshakeWait = std::chrono::seconds(10);
constexpr std::size_t kMaxDescriptors = 3;  // the userfaultfd comes first; forks of Firecracker send memory, too
constexpr int kMaxParts = 64;               // in which a message may arrive
constexpr std::uint64_t kFeatures = UFFD_FEATURE_EVENT_REMOVE;

struct Message {
  std::string text;
  Handshake handshake;
  os::UniqueFd userfaultfd;
};

/// Looks at what stands in the queue behind what was looked at before. Errors: gone (that was all), timed_out.
Result<os::ReceivedPacket> look(int socket, std::span<std::byte> buffer, Deadline deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::microseconds>(deadline.when() - Clock::now()).count();
    if (left <= 0) return fail(Errc::timed_out, "it did not come within 10 s");
    const timeval limit{.tv_sec = left / 1'000'000, .tv_usec = left % 1'000'000};
    if (::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0)
      return fail_errno(errno, "SO_RCVTIMEO");
    auto looked = os::receive_packet(socket, buffer, os::Waiting::until, os::Taking::a_look);
    if (looked || looked.error().code() != Errc::again) return looked;
  }
}

/// Looking for the end of every part would cost more than reading it.
bool may_be_whole(std::string_view text) {
  const auto last = text.find_last_not_of(" \t\r\n");
  return last != std::string_view::npos && text[last] == ']' && is_whole(text);
}

Result<Message> look_for_message(int socket) {
  constexpr int kFromTheStart = 0;
  if (::setsockopt(socket, SOL_SOCKET, SO_PEEK_OFF, &kFromTheStart, sizeof kFromTheStart) != 0)
    return fail_errno(errno, "SO_PEEK_OFF");
  const Deadline deadline = Deadline::after(kHandshakeWait);
  Message message;
  std::size_t descriptors = 0;
  std::string buffer(kMaxHandshake + 1, '\0');
  for (int part = 0; part < kMaxParts; ++part) {
    auto looked = look(socket, std::as_writable_bytes(std::span(buffer)), deadline);
    if (!looked) return std::unexpected(looked.error().within("no whole handshake"));
    message.text.append(buffer, 0, looked->size);
    descriptors += looked->descriptors;
    if (looked->descriptors != 0 && !message.userfaultfd) message.userfaultfd = std::move(looked->descriptor);
    if (looked->descriptors_cut || descriptors > kMaxDescriptors) {
      return fail(Errc::protocol, "the handshake carries more than 3 descriptors (or there is no room for them)");
    }
    if (message.text.size() > kMaxHandshake)
      return fail(Errc::protocol, fmt::format("the handshake has more than {} bytes", kMaxHandshake));
    if (!may_be_whole(message.text)) continue;
    message.handshake = UFFDA_TRY(parse_handshake(message.text));
    if (!message.userfaultfd) return fail(Errc::protocol, "the handshake carries no userfaultfd");
    return message;
  }
  return fail(Errc::protocol, "the handshake comes in too many parts");
}

/// The same for the same connection, whichever server asks, and of no meaning to anybody else.
Result<handoff::Token> token_of(const KeptState& kept, int socket, std::string_view text) {
  struct stat status{};
  if (::fstat(socket, &status) != 0) return fail_errno(errno, "the connection");
  const std::array<std::uint64_t, 2> which{status.st_ino, std::hash<std::string_view>{}(text)};
  handoff::Token token{};
  std::memcpy(token.bytes, which.data(), sizeof which);
  for (std::size_t i = 0; i < kept.seed().size(); ++i) token.bytes[i] ^= kept.seed().at(i);
  return token;
}

Result<void> check_pages(const std::string& name, const MemoryObject& object, const Handshake& handshake) {
  if (handshake.page_size == object.folio_size()) return {};
  const char* remedy = handshake.page_size == kPageSize ? "start another one without --hugepages for it"
                                                        : "start another one with --hugepages for it";
  return fail(Errc::invalid_argument, fmt::format("its pages have {} bytes, and this server's of '{}' have {}: {}",
                                                  handshake.page_size.value, name, object.folio_size().value, remedy));
}

}  // namespace

Result<void> take_vm(Service& service, const KeptState* kept, int socket) {
  Message message = UFFDA_TRY(look_for_message(socket));
  const auto& [name, object] = *service.exports().all().begin();
  UFFDA_TRY_VOID(check_pages(name, *object, message.handshake));
  std::vector<Service::CopiedPlace> places;
  places.reserve(message.handshake.regions.size());
  for (const Region& region : message.handshake.regions)
    places.push_back(
        {.name = name, .place = {.address = region.start, .length = region.length, .offset = region.offset}});
  HandoffBackend::Attach request{.userfaultfd = std::move(message.userfaultfd), .features = kFeatures};
  if (kept != nullptr) request.wanted = UFFDA_TRY(token_of(*kept, socket, message.text));
  if (auto peer = os::open_peer(socket)) request.process = *std::move(peer);
  UFFDA_TRY_VOID(service.attach_copied(std::move(request), places));
  log(LogLevel::info, "a VM with {} regions is served", places.size());
  return {};
}

}  // namespace uffda::firecracker
