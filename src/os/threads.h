// Threads, as the kernel knows them.
#pragma once

#include <cstdint>

namespace uffda::os {

/// The kernel's number of the calling thread.
[[nodiscard]] std::uint32_t this_thread_id() noexcept;

/// The CPU on which a thread of any process runs or ran last; -1 if /proc shows no such thread. By its number here: a
/// number of another PID namespace is another thread's. About 4 us. Never
/// allocates, takes no lock.
[[nodiscard]] int cpu_of_thread(std::uint32_t thread) noexcept;

}  // namespace uffda::os
