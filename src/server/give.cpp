#include "server/give.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>

#include "server/packet.h"

namespace uffda {
namespace {

using handoff::Direction;
using handoff::Header;
using handoff::Kept;
using handoff::Type;

constexpr Duration kStoreWait = std::chrono::seconds(90);  // for a server to store what is dirty
constexpr Duration kOpenWait = std::chrono::seconds(60);   // for sources to be opened
constexpr Duration kPacketWait = std::chrono::seconds(5);
constexpr std::size_t kMaxKept = 2 * KeptState::kMaxObjects + KeptState::kMaxSpaces * (1 + KeptSpace::kMessages) + 2;

using Buffer = std::array<std::byte, 1024>;

Result<void> send_kept(int socket, int number) {
  Kept kept{};
  kept.header = make_header(Type::kTakeover, Direction::reply, sizeof kept);
  kept.number = number;
  return handoff::send_message(socket, kept, Deadline::after(kPacketWait), number);
}

Result<void> ask(int socket, Duration wait) {
  const Header request = make_header(Type::kTakeover, Direction::request, sizeof request);
  UFFDA_TRY_VOID(handoff::send_message(socket, request, Deadline::after(kPacketWait)));
  Buffer buffer;
  const auto answer = UFFDA_TRY(handoff::receive_packet(socket, buffer, Deadline::after(wait)));
  if (answer.type() == Type::kError) return std::unexpected(handoff::read_error_reply(answer));
  UFFDA_TRY_VOID(handoff::parse<Header>(answer));
  return {};
}

Result<Descriptors> receive_all(int socket) {
  Descriptors all;
  Buffer buffer;
  for (;;) {
    auto packet = UFFDA_TRY(handoff::receive_packet(socket, buffer, Deadline::after(kPacketWait)));
    const auto kept = UFFDA_TRY(handoff::parse<Kept>(packet));
    if (kept.number == -1 && !all.empty()) return all;
    if (kept.number <= STDERR_FILENO || !packet.descriptor || all.size() >= kMaxKept)
      return fail(Errc::protocol, "what the running server gives makes no sense");
    all[kept.number] = std::move(packet.descriptor);
  }
}

/// The same descriptor with a number from `lowest` on.
Result<int> move_up(int fd, int lowest) {
  const int moved = ::fcntl(fd, F_DUPFD_CLOEXEC, lowest);
  if (moved < 0)
    return fail_errno(errno, "moving a descriptor (ulimit -n must be at least that of the running server)");
  ::close(fd);
  return moved;
}

}  // namespace

Result<void> give_all(KeptState& state) {
  const os::UniqueFd socket(state.taker());
  state.set_taker(-1);
  std::vector<int> all = state.descriptors();
  // The memory first: the taker knows by it what the rest is.
  std::ranges::partition(all, [&](int fd) { return fd == state.fd(); });
  for (const int fd : all) UFFDA_TRY_VOID(send_kept(socket.get(), fd));
  UFFDA_TRY_VOID(send_kept(socket.get(), -1));
  Buffer buffer;
  UFFDA_TRY(handoff::receive_packet(socket.get(), buffer, Deadline::after(kOpenWait)));
  return handoff::send_message(socket.get(), make_header(Type::kTakeover, Direction::reply, sizeof(Header)),
                               Deadline::after(kPacketWait));
}

Result<Taken> place_all(Descriptors all, int memory, os::UniqueFd giver, int ready_fd) {
  // First everything out of the way of every number, ours too.
  const int above = all.rbegin()->first + 1;
  for (auto& [number, fd] : all) fd.reset(UFFDA_TRY(move_up(fd.release(), above)));
  if (giver) giver.reset(UFFDA_TRY(move_up(giver.release(), above)));
  if (ready_fd >= 0 && all.contains(ready_fd)) ready_fd = UFFDA_TRY(move_up(ready_fd, above));
  for (auto& [number, fd] : all) {
    if (::dup3(fd.get(), number, O_CLOEXEC) < 0) return fail_errno(errno, "placing a descriptor");
    fd.reset();
  }
  return Taken{
      .state = UFFDA_TRY(KeptState::open(os::UniqueFd(memory))), .giver = std::move(giver), .ready_fd = ready_fd};
}

Result<Taken> take_all(const std::string& socket_path, int ready_fd) {
  os::UniqueFd socket = UFFDA_TRY(handoff::connect_socket(socket_path, Deadline::after(kPacketWait)));
  UFFDA_TRY_VOID(ask(socket.get(), kStoreWait));
  Descriptors all;
  int memory = -1;
  {
    Buffer buffer;
    auto packet = UFFDA_TRY(handoff::receive_packet(socket.get(), buffer, Deadline::after(kPacketWait)));
    const auto first = UFFDA_TRY(handoff::parse<Kept>(packet));
    memory = first.number;
    all = UFFDA_TRY(receive_all(socket.get()));
    all[memory] = std::move(packet.descriptor);
  }
  return place_all(std::move(all), memory, std::move(socket), ready_fd);
}

Result<void> confirm_taken(int giver) {
  auto confirmed = ask(giver, kPacketWait);
  if (!confirmed) return std::unexpected(confirmed.error().within("the server before goes on"));
  return {};
}

}  // namespace uffda
