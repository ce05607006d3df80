// The floor of a cold sequential read into a page cache of one's own: threads that pread parts of a file in order and
// pwrite them into a memfd, and nothing else; no faults, no userfaultfd.
#pragma once

#include <cstddef>
#include <string>

namespace bench {

/// MB/s of bringing [0, bytes) of the file into a memfd, in parts of 1 MiB, by a thread on each of `threads` CPUs.
double copy_throughput(const std::string& path, std::size_t bytes, std::size_t threads);

/// Touches and frees `bytes` of memory. A virtual machine that returns free memory to its host pays for the next touch
/// of each page: whoever comes after this does not.
void warm_memory(std::size_t bytes);

}  // namespace bench
