#include "common/copy_floor.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "common/bench.h"

namespace bench {

double copy_throughput(const std::string& path, std::size_t bytes, std::size_t threads) {
  constexpr std::size_t kPart = std::size_t{1} << 20U;
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const int memory = ::memfd_create("copy-floor", MFD_CLOEXEC);
  check(file >= 0 && memory >= 0 && ::ftruncate(memory, static_cast<off_t>(bytes)) == 0, "copy floor");
  std::atomic<std::size_t> next{0};
  const std::vector<int> cpus = usable_cpus();
  std::vector<std::thread> copiers;
  const std::int64_t start = now_ns();
  for (std::size_t i = 0; i < threads; ++i) {
    copiers.emplace_back([&, cpu = cpus.at(i % cpus.size())] {
      pin_thread({cpu});
      std::vector<std::byte> buffer(kPart);
      for (std::size_t at = next.fetch_add(kPart); at < bytes; at = next.fetch_add(kPart)) {
        check(::pread(file, buffer.data(), kPart, static_cast<off_t>(at)) == static_cast<ssize_t>(kPart), "pread");
        check(::pwrite(memory, buffer.data(), kPart, static_cast<off_t>(at)) == static_cast<ssize_t>(kPart), "pwrite");
      }
    });
  }
  for (std::thread& copier : copiers) copier.join();
  const double took_ns = static_cast<double>(now_ns() - start);
  ::close(file);
  ::close(memory);
  return static_cast<double>(bytes) / took_ns * 1e3;
}

void warm_memory(std::size_t bytes) {
  void* const memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  check(memory != MAP_FAILED && ::munmap(memory, bytes) == 0, "mmap");
}

}  // namespace bench
