// Packets of the handoff protocol: sending, receiving and checking them. Both ends and the relay between them use
// these.
//
// Nothing here trusts the peer: a packet is accepted when its header is right (magic, version, size equal to what
// arrived) and it carries at most one descriptor; what is in it is the business of who reads it. No function waits past
// its deadline.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "os/fd.h"
#include "server/handoff_wire.h"
#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::handoff {

/// One packet as it arrived: its header has been checked, `bytes` is all of it (header included) and lies in the
/// caller's buffer.
struct Packet {
  Header header;
  std::span<const std::byte> bytes;
  os::UniqueFd descriptor;  // at most one travels with a packet; close-on-exec

  [[nodiscard]] Type type() const { return static_cast<Type>(header.type & ~static_cast<unsigned>(kReply)); }
  [[nodiscard]] bool is_reply() const { return (header.type & kReply) != 0; }
  [[nodiscard]] std::span<const std::byte> body() const { return bytes.subspan(sizeof(Header)); }
};

enum class Direction : bool { request, reply };

/// A header for a packet of `size` bytes, header included.
[[nodiscard]] Header make_header(Type type, Direction direction, std::size_t size);

/// Sends `head` followed by `tail` (may be empty) as one packet, with a copy of descriptor `passed` unless it is -1.
/// `head` starts with a Header whose size is head.size() + tail.size(). Threads: any; one packet is never mixed with
/// another. Errors: gone (the peer closed), timed_out, invalid_argument (larger than kMaxMessage), or what the socket
/// said.
Result<void> send_packet(int socket, std::span<const std::byte> head, std::span<const std::byte> tail,
                         Deadline deadline, int passed = -1);

/// Sends one plain struct.
template <typename Message>
  requires std::is_trivially_copyable_v<Message>
Result<void> send_message(int socket, const Message& message, Deadline deadline, int passed = -1) {
  return send_packet(socket, std::as_bytes(std::span(&message, 1)), {}, deadline, passed);
}

/// Receives one packet into `buffer` (kMaxMessage bytes hold any). Descriptors beyond the first are closed and refused.
/// Errors: gone (the peer closed), timed_out, protocol (what arrived is no packet of ours), or what the socket said.
Result<Packet> receive_packet(int socket, std::span<std::byte> buffer, Deadline deadline);

/// Sends a request to the server at `path` over `socket`, which is connected first if it is none, and receives the
/// answer into `into`. A server that has a holder comes back, and listens all the while: when the connection ends
/// before the answer, it is made again and the request repeated. So a request may be done twice. Errors: gone (there is
/// no server), and those of sending and receiving.
Result<Packet> ask_server(os::UniqueFd& socket, const std::string& path, std::span<const std::byte> head,
                          std::span<const std::byte> tail, int passed, std::span<std::byte> into, Deadline deadline);

/// Checks the header of what arrived: enough bytes, magic, version, size. Errors: protocol.
Result<Header> check_header(std::span<const std::byte> packet);

/// The packet as a struct. Errors: protocol unless its size is exactly right.
template <typename Message>
  requires std::is_trivially_copyable_v<Message>
Result<Message> parse(const Packet& packet) {
  if (packet.bytes.size() != sizeof(Message)) return fail(Errc::protocol, "a packet has the wrong size for its type");
  Message message;
  std::memcpy(&message, packet.bytes.data(), sizeof message);
  return message;
}

/// Copies a name into its field, zero padded. Errors: invalid_argument (empty, too long, or with a zero byte).
Result<void> put_name(char (&field)[kNameSize], std::string_view name);
/// The name in a field that a peer filled. Errors: protocol (empty or not terminated).
Result<std::string> get_name(const char (&field)[kNameSize]);
/// Copies a text, cut to what fits.
void put_text(char (&field)[kTextSize], std::string_view text);
[[nodiscard]] std::string get_text(const char (&field)[kTextSize]);

/// An Error as a packet, and back. A status that is no Errc of ours reads as protocol.
[[nodiscard]] ErrorReply make_error_reply(const Error& error);
[[nodiscard]] Error read_error_reply(const Packet& packet);

/// Waits until `socket` has `events` (POLLIN, POLLOUT). Errors: timed_out.
Result<void> wait_socket(int socket, short events, Deadline deadline);

/// A descriptor connected to the SOCK_SEQPACKET socket at `path`, close-on-exec.
/// Errors: gone (nobody listens there; says so), permission_denied, invalid_argument (path too long), timed_out.
Result<os::UniqueFd> connect_socket(const std::string& path, Deadline deadline);

}  // namespace uffda::handoff
