// Maps a file in the ways that programs do and prints a checksum for each. A client of the everyday-commands test and
// of the tests of a dying server: `exec_mmap FILE` runs everything once; `exec_mmap FILE --crawl` touches every page
// once, and for each page that raises SIGBUS prints "bus PAGE" and goes on; with `--pause FIFO` it prints "half" in the
// middle and waits there for a writer of FIFO.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

namespace {

constexpr size_t kPage = 4096;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

uint64_t checksum(const unsigned char* bytes, size_t size, uint64_t sum = 14695981039346656037u) {
  for (size_t i = 0; i < size; ++i) sum = (sum ^ bytes[i]) * 1099511628211u;
  return sum;
}

struct File {
  int fd;
  size_t size;

  unsigned char* map(int protection, int flags, size_t offset = 0, size_t length = 0) const {
    void* at = mmap(nullptr, length != 0 ? length : size, protection, flags, fd, static_cast<off_t>(offset));
    if (at == MAP_FAILED) die("mmap");
    return static_cast<unsigned char*>(at);
  }
};

void print(const char* what, uint64_t sum) {
  std::printf("%-24s %016llx\n", what, static_cast<unsigned long long>(sum));
}

void whole_file(const File& file) {
  for (const int flags : {MAP_SHARED, MAP_PRIVATE}) {
    unsigned char* map = file.map(PROT_READ, flags);
    print(flags == MAP_SHARED ? "shared" : "private", checksum(map, file.size));
    const size_t tail = (kPage - file.size % kPage) % kPage;
    print("zero tail", checksum(map + file.size, tail));
    munmap(map, file.size);
  }
  unsigned char* map = file.map(PROT_READ, MAP_SHARED | MAP_POPULATE);
  print("populated", checksum(map, file.size));
  munmap(map, file.size);
}

void private_writes(const File& file) {
  unsigned char* map = file.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
  for (size_t at = 0; at < file.size; at += 3 * kPage) map[at] = 0x5a;
  print("private writes", checksum(map, file.size));
  if (madvise(map, file.size, MADV_DONTNEED) != 0) die("madvise");
  print("thrown away", checksum(map, file.size));
  munmap(map, file.size);
}

void parts(const File& file) {
  const size_t middle = file.size / 2 / kPage * kPage;
  unsigned char* map = file.map(PROT_READ, MAP_SHARED, middle, 100 * kPage);
  print("from the middle", checksum(map, 100 * kPage));
  munmap(map + 10 * kPage, 20 * kPage);
  print("before a hole", checksum(map, 10 * kPage));
  print("after a hole", checksum(map + 30 * kPage, 70 * kPage));
  void* moved = mremap(map + 30 * kPage, 70 * kPage, 71 * kPage, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) die("mremap");
  print("moved and grown", checksum(static_cast<unsigned char*>(moved), 71 * kPage));
}

void threads(const File& file) {
  unsigned char* map = file.map(PROT_READ, MAP_SHARED);
  std::vector<std::thread> running;
  std::vector<uint64_t> sums(6);
  for (size_t i = 0; i < sums.size(); ++i) {
    running.emplace_back([&, i] {
      uint64_t sum = i;
      for (size_t at = i * 13; at < file.size; at += 997) sum = checksum(map + at, 1, sum);
      sums[i] = sum;
    });
  }
  for (auto& one : running) one.join();
  for (const uint64_t sum : sums) print("thread", sum);
  munmap(map, file.size);
}

void children(const File& file) {
  unsigned char* map = file.map(PROT_READ, MAP_SHARED);
  (void)checksum(map, file.size / 2);
  std::fflush(stdout);
  if (const pid_t child = fork(); child == 0) {
    print("child, inherited", checksum(map, file.size));
    print("child, its own", checksum(file.map(PROT_READ, MAP_PRIVATE), file.size));
    std::fflush(stdout);
    _exit(0);
  } else {
    int status = 0;
    waitpid(child, &status, 0);
    print("child's status", static_cast<uint64_t>(status));
  }
  print("parent, after", checksum(map, file.size));
  munmap(map, file.size);
}

void system_calls(const File& file) {
  unsigned char* map = file.map(PROT_READ, MAP_SHARED);
  int ends[2];
  if (pipe(ends) != 0) die("pipe");
  uint64_t sum = 0;
  for (size_t at = 0; at + 5000 <= file.size; at += 300000) {  // the kernel reads pages that nobody touched yet
    if (write(ends[1], map + at, 5000) != 5000) die("write from a mapping");
    unsigned char got[5000];
    if (read(ends[0], got, sizeof got) != 5000) die("read");
    sum = checksum(got, sizeof got, sum);
  }
  print("write(2) from it", sum);
  munmap(map, file.size);
}

sigjmp_buf g_back;
void on_bus(int) { siglongjmp(g_back, 1); }

/// The checksum of a page, or nothing where touching it raised SIGBUS.
std::optional<uint64_t> try_page(const unsigned char* page, size_t size) {
  if (sigsetjmp(g_back, 1) != 0) return std::nullopt;
  return checksum(page, size);
}

void wait_for_writer(const char* fifo) {
  std::printf("half\n");
  std::fflush(stdout);
  char byte = 0;
  const int fd = open(fifo, O_RDONLY);
  if (fd < 0 || read(fd, &byte, 1) < 0) die(fifo);
  close(fd);
}

void crawl(const File& file, const char* fifo) {
  struct sigaction action{};
  action.sa_handler = on_bus;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &action, nullptr);
  const unsigned char* map = file.map(PROT_READ, MAP_SHARED);
  const size_t pages = (file.size + kPage - 1) / kPage;
  for (size_t page = 0; page < pages; ++page) {
    if (fifo != nullptr && page == pages / 2) wait_for_writer(fifo);
    const size_t size = page + 1 == pages ? file.size - page * kPage : kPage;
    if (const auto sum = try_page(map + page * kPage, size)) {
      std::printf("page %zu %016llx\n", page, static_cast<unsigned long long>(*sum));
    } else {
      std::printf("bus %zu\n", page);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  File file{open(argv[1], O_RDONLY | O_CLOEXEC), 0};
  struct stat status{};
  if (file.fd < 0 || fstat(file.fd, &status) != 0) die(argv[1]);
  file.size = static_cast<size_t>(status.st_size);
  if (argc > 2 && std::strcmp(argv[2], "--crawl") == 0) {
    crawl(file, argc > 4 ? argv[4] : nullptr);
    return 0;
  }
  whole_file(file);
  private_writes(file);
  parts(file);
  threads(file);
  children(file);
  system_calls(file);
  return 0;
}
