// The guest's memory, before anybody serves it: mapped, and trapped by a userfaultfd.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct GuestMemory {
  std::byte* start = nullptr;
  std::uint64_t size = 0;
  std::uint64_t page = 4096;
  bool memfd = false;  // shared with whoever has the memfd, as vhost-user needs it
};

enum class Kind { anonymous, memfd };
enum class Pages { small, huge };

/// As Firecracker maps it: nothing is there yet, and nothing is reserved.
GuestMemory map_guest_memory(std::uint64_t size, Kind kind, Pages pages);

/// A userfaultfd that traps faults of the kernel, too: KVM's are such.
int open_userfault(std::uint64_t features);
/// `modes`: UFFDIO_REGISTER_MODE_*.
void register_memory(int userfault, const void* start, std::uint64_t size, std::uint64_t modes);

/// The balloon: gives pages back to the host. They are zeroes from now on.
void give_back(const GuestMemory& memory, std::uint64_t offset, std::uint64_t length);

/// A connected socket. `type`: SOCK_STREAM or SOCK_SEQPACKET.
int connect_to(const std::string& path, int type);
/// Sends bytes, with a descriptor unless it is -1. False: the other end is gone.
bool send_with_descriptor(int socket, const void* bytes, std::size_t size, int descriptor);
