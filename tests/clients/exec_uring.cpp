// Reads a file with io_uring, many requests at once, through a registered file and registered buffers and without, and
// writes it to standard output in order. A client of the everyday-commands test.
#include <fcntl.h>
#include <liburing.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr unsigned kDepth = 16;
constexpr size_t kBlock = 65536;

[[noreturn]] void die(const char* what, int error) {
  std::fprintf(stderr, "exec_uring: %s: %d\n", what, error);
  std::exit(1);
}

/// Queues the read of block number `block` in one of three ways.
void queue(io_uring& ring, int file, std::vector<char>& slot, unsigned index, size_t block) {
  io_uring_sqe* entry = io_uring_get_sqe(&ring);
  if (entry == nullptr) die("no entry", 0);
  const unsigned size = kBlock;
  const unsigned long long offset = block * kBlock;
  switch (block % 3) {
    case 0:
      io_uring_prep_read(entry, file, slot.data(), size, offset);
      break;
    case 1:
      io_uring_prep_read_fixed(entry, file, slot.data(), size, offset, static_cast<int>(index));
      break;
    default:
      io_uring_prep_read(entry, 0, slot.data(), size, offset);
      entry->flags |= IOSQE_FIXED_FILE;
  }
  io_uring_sqe_set_data64(entry, index);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) die("usage: exec_uring FILE", 0);
  const int file = open(argv[1], O_RDONLY);
  struct stat status{};
  if (file < 0 || fstat(file, &status) != 0) die(argv[1], file);
  const auto total = static_cast<size_t>(status.st_size);
  io_uring ring{};
  if (const int error = io_uring_queue_init(kDepth, &ring, 0); error != 0) die("io_uring_queue_init", error);
  std::vector<std::vector<char>> slots(kDepth, std::vector<char>(kBlock));
  std::vector<iovec> registered;
  for (auto& slot : slots) registered.push_back({slot.data(), slot.size()});
  if (const int error = io_uring_register_buffers(&ring, registered.data(), kDepth); error != 0) die("buffers", error);
  if (const int error = io_uring_register_files(&ring, &file, 1); error != 0) die("files", error);

  const size_t blocks = (total + kBlock - 1) / kBlock;
  for (size_t first = 0; first < blocks; first += kDepth) {
    const auto batch = static_cast<unsigned>(blocks - first < kDepth ? blocks - first : kDepth);
    for (unsigned i = batch; i-- > 0;) queue(ring, file, slots[i], i, first + i);
    if (io_uring_submit_and_wait(&ring, batch) < 0) die("submit", 0);
    for (unsigned i = 0; i < batch; ++i) {
      io_uring_cqe* done = nullptr;
      if (io_uring_wait_cqe(&ring, &done) != 0) die("wait", 0);
      const size_t block = first + io_uring_cqe_get_data64(done);
      const size_t wanted = block + 1 == blocks ? total - block * kBlock : kBlock;
      if (done->res != static_cast<int>(wanted)) die("short read", done->res);
      io_uring_cqe_seen(&ring, done);
    }
    for (unsigned i = 0; i < batch; ++i) {
      const size_t size = first + i + 1 == blocks ? total - (first + i) * kBlock : kBlock;
      if (std::fwrite(slots[i].data(), 1, size, stdout) != size) die("write", 0);
    }
  }
  io_uring_queue_exit(&ring);
  return 0;
}
