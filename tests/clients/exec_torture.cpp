// The torture of exec_torture.sh: writers of several processes, each with a few threads, over one memory.
//   exec_torture make DISK MODEL                          the file as it is at first, and a model of it
//   exec_torture run SHOWN DISK MODEL FIRST STEPS SEED    four writers, from number FIRST on, in the mapped SHOWN
//   exec_torture check DISK MODEL                         at the end: the file holds what was written last
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "support/torture.h"

namespace {

using namespace uffda;  // NOLINT(google-build-using-namespace): a program of the tests

constexpr std::uint64_t kThreads = 4;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

void* map_file(const char* path, int protection, std::uint64_t size) {
  const int fd = open(path, (protection & PROT_WRITE) != 0 ? O_RDWR : O_RDONLY);
  void* const at = fd < 0 ? MAP_FAILED : mmap(nullptr, size, protection, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) die(path);
  close(fd);
  return at;
}
std::span<test::TortureWord> map_model(const char* path) {
  constexpr std::uint64_t kSize = test::kTortureWords * sizeof(test::TortureWord);
  return {static_cast<test::TortureWord*>(map_file(path, PROT_READ | PROT_WRITE, kSize)), test::kTortureWords};
}

int make(const char* disk, const char* model) {
  std::vector<std::byte> bytes(test::kTortureSize);
  test::Pattern::fill(bytes, 0);
  const int fd = open(disk, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (fd < 0 || write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) die(disk);
  const int words = open(model, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (words < 0 || ftruncate(words, test::kTortureWords * sizeof(test::TortureWord)) != 0) die(model);
  return 0;
}

/// A failed write is told by one msync, and what failed is tried again.
bool store(std::byte* memory, ByteRange range) {
  while (msync(memory + range.start.value, range.length.value, MS_SYNC) != 0) {
    if (errno != EIO) return false;
  }
  return true;
}

int run(char** arguments) {
  auto* const memory = static_cast<std::byte*>(map_file(arguments[0], PROT_READ | PROT_WRITE, test::kTortureSize));
  const int disk = open(arguments[1], O_RDONLY);
  if (disk < 0) die(arguments[1]);
  const std::span model = map_model(arguments[2]);
  const std::uint64_t first = std::strtoull(arguments[3], nullptr, 10);
  std::vector<std::string> wrong(kThreads);
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      wrong[i] = test::TortureWriter({.me = first + i,
                                      .steps = std::strtoull(arguments[4], nullptr, 10),
                                      .seed = std::strtoull(arguments[5], nullptr, 10),
                                      .words = reinterpret_cast<std::uint64_t*>(memory),
                                      .model = model,
                                      .file = disk,
                                      .sync = [&](ByteRange range) { return store(memory, range); }})
                     .run();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& text : wrong) {
    if (text.empty()) continue;
    std::printf("%s\n", text.c_str());
    return 1;
  }
  std::printf("right\n");
  return 0;
}

int check(const char* disk, const char* model) {
  const auto* const words = static_cast<const std::uint64_t*>(map_file(disk, PROT_READ, test::kTortureSize));
  const std::string wrong = test::TortureWriter::check_all(words, map_model(model));
  std::printf("%s\n", wrong.empty() ? "right" : wrong.c_str());
  return wrong.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "make" && argc == 4) return make(argv[2], argv[3]);
  if (what == "run" && argc == 8) return run(argv + 2);
  if (what == "check" && argc == 4) return check(argv[2], argv[3]);
  std::fprintf(stderr, "usage: exec_torture make|run|check ...\n");
  return 2;
}
