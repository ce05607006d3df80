#include <linux/userfaultfd.h>
#include <sys/socket.h>

#include "fail.h"
#include "restore.h"

Restored restore_firecracker(const std::string& socket_path, std::uint64_t size, Kind kind, Pages pages) {
  Restored restored{.memory = map_guest_memory(size, kind, pages),
                    .userfault = open_userfault(UFFD_FEATURE_EVENT_REMOVE)};
  const GuestMemory& memory = restored.memory;
  register_memory(restored.userfault, memory.start, memory.size, UFFDIO_REGISTER_MODE_MISSING);
  const std::string page = std::to_string(memory.page);
  const std::string words =
      "[{\"base_host_virt_addr\":" + std::to_string(reinterpret_cast<std::uintptr_t>(memory.start)) +
      ",\"size\":" + std::to_string(memory.size) + ",\"offset\":0,\"page_size\":" + page +
      ",\"page_size_kib\":" + page + "}]";
  // One message, and no answer. The socket stays open, as Firecracker's does since 1.12.
  if (!send_with_descriptor(connect_to(socket_path, SOCK_STREAM), words.data(), words.size(), restored.userfault))
    fail_plainly("the server is gone");
  return restored;
}
