// UNIX sockets whose packets carry descriptors, and who is at the other end. What is in a packet is the business of
// others.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "os/fd.h"
#include "uffda/result.h"

namespace uffda::os {

struct SocketPair {
  UniqueFd first;
  UniqueFd second;
};
/// Two connected SOCK_SEQPACKET sockets, close-on-exec.
Result<SocketPair> make_socket_pair();

/// A SOCK_SEQPACKET socket at an abstract name: no file, and as long as somebody has it open. Close-on-exec, and it
/// does not wait. Requires: at most 107 bytes. Errors: busy (somebody has the name), or what the socket said.
Result<UniqueFd> listen_abstract(std::string_view name);
/// Who listens there; whoever it is (peer_of). Errors: gone (nobody), again (too many wait), or what the socket said.
Result<UniqueFd> connect_abstract(std::string_view name);

enum class Waiting : bool {
  none,   // errors: again instead of a wait
  until,  // until the packet is through
};

/// Sends `head` followed by `tail` (may be empty) as one packet, with a copy of descriptor `passed` unless it is -1.
/// Threads: any; one packet is never mixed with another. No signal is raised. Errors: again (Waiting::none), gone (the
/// peer closed), or what the socket said.
Result<void> send_packet(int socket, std::span<const std::byte> head, std::span<const std::byte> tail, int passed,
                         Waiting waiting);

/// Two connected byte streams, close-on-exec.
Result<SocketPair> make_stream_pair();

/// Sends the first bytes of `bytes` on a byte stream, and with the first of them a copy of descriptor `passed` unless
/// it is -1. How many went out; never waits, and raises no signal. Errors: again, gone (the peer closed), or what the
/// socket said.
Result<std::size_t> send_some(int socket, std::span<const std::byte> bytes, int passed = -1);
/// Takes what has come on a byte stream, and does not wait. The bytes at the start of the buffer, at least one. Errors:
/// again, gone (the peer closed), or what the socket said.
Result<std::span<std::byte>> receive_some(int socket, std::span<std::byte> buffer);

struct ReceivedPacket {
  std::size_t size = 0;  // bytes in the buffer; never 0
  UniqueFd descriptor;   // the first that came, close-on-exec; the others are closed
  std::size_t descriptors = 0;
  bool bytes_cut = false;        // the packet was larger than the buffer
  bool descriptors_cut = false;  // more came than there was room for, here or in this process's table
};
enum class Taking : bool {
  away,
  a_look,  ///< it stays in the queue; descriptors are copies. With SO_PEEK_OFF the next look goes on behind it
};
/// Takes one packet (of a stream: what there is) into `buffer`. Errors: again (Waiting::none), gone (the peer closed),
/// or what the socket said.
Result<ReceivedPacket> receive_packet(int socket, std::span<std::byte> buffer, Waiting waiting,
                                      Taking taking = Taking::away);

struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;
};
/// Who made the other end of a connected socket (SO_PEERCRED). Errors: what the socket said.
Result<Peer> peer_of(int socket);

/// The descriptors of this process that are connections which the listening `socket` has accepted.
std::vector<int> accepted_at(int socket);

}  // namespace uffda::os
