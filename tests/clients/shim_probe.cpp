// shim_probe --make FILE SIZE                 writes the file
// shim_probe FILE [--served] [CASE]...        runs all cases, or the named ones
#include "shim_probe.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "shim_pattern.h"

namespace probe {

File g_file{};
static const char* g_running = "";

void fail(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: %s: failed: %s (%s)\n", file, line, g_running, what, std::strerror(errno));
  std::fflush(stderr);
  _exit(1);
}

const char* mapping_of(const void* address) {
  static thread_local char found[512];
  found[0] = 0;
  FILE* maps = std::fopen("/proc/self/maps", "re");
  CHECK(maps != nullptr);
  char line[1024];
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    unsigned long start = 0;
    unsigned long end = 0;
    char perms[8] = "";
    char name[400] = "";
    std::sscanf(line, "%lx-%lx %7s %*s %*s %*s %399[^\n]", &start, &end, perms, name);
    const auto at = reinterpret_cast<unsigned long>(address);
    if (start <= at && at < end) std::snprintf(found, sizeof found, "%s %s", perms, name);
  }
  std::fclose(maps);
  return found;
}

uint8_t* map_file(size_t length, int protection, int flags, uint64_t offset, void* address) {
  void* memory = mmap(address, length, protection, flags, g_file.fd, static_cast<off_t>(offset));
  CHECK(memory != MAP_FAILED);
  if (g_file.served) CHECK(std::strstr(mapping_of(memory), "memfd:") != nullptr);
  return static_cast<uint8_t*>(memory);
}

void check_bytes(const uint8_t* memory, size_t length, uint64_t offset) {
  const size_t wrong = first_wrong(memory, offset, length, g_file.size);
  if (wrong == length) return;
  std::fprintf(stderr, "%s: byte %zu of %zu at file offset %zu is %02x\n", g_running, wrong, length,
               static_cast<size_t>(offset) + wrong, memory[wrong]);
  CHECK(wrong == length);
}

void check_random(const uint8_t* memory, size_t many, uint64_t seed) {
  for (size_t i = 0; i < many; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const uint64_t page = (seed >> 33) % pages();
    check_bytes(memory + page * kPage, 64, page * kPage);
  }
}

int in_child(const std::function<void()>& body, pid_t (*fork_call)()) {
  std::fflush(nullptr);
  const pid_t child = fork_call != nullptr ? fork_call() : fork();
  CHECK(child >= 0);
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status)) return WTERMSIG(status);
  return WEXITSTATUS(status) == 0 ? 0 : 1000 + WEXITSTATUS(status);
}

static int make(const char* path, uint64_t size) {
  FILE* out = std::fopen(path, "we");
  if (out == nullptr) return 1;
  std::vector<uint8_t> bytes(1 << 20);
  for (uint64_t at = 0; at < size; at += bytes.size()) {
    const size_t part = size - at < bytes.size() ? size - at : bytes.size();
    fill_pattern(bytes.data(), at, part);
    if (std::fwrite(bytes.data(), 1, part, out) != part) return 1;
  }
  return std::fclose(out) == 0 ? 0 : 1;
}

static int run(int argc, char** argv) {
  g_file.path = argv[1];
  g_file.fd = open(argv[1], O_RDONLY | O_CLOEXEC);
  CHECK(g_file.fd >= 0);
  struct stat status{};
  CHECK(fstat(g_file.fd, &status) == 0);
  g_file.size = static_cast<uint64_t>(status.st_size);
  std::vector<std::string> wanted;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--served") == 0) {
      g_file.served = true;
    } else {
      wanted.emplace_back(argv[i]);
    }
  }
  int count = 0;
  const std::vector<Case> special = wanted.empty() ? std::vector<Case>{} : special_cases();
  for (const auto& cases : {mapping_cases(), change_cases(), fork_cases(), special}) {
    for (const Case& one : cases) {
      if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), one.name) == wanted.end()) continue;
      g_running = one.name;
      one.run();
      ++count;
      if (std::getenv("SHIM_PROBE_VERBOSE") != nullptr) std::fprintf(stderr, "ok %s\n", one.name);
    }
  }
  std::printf("%d cases right\n", count);
  return count == 0 ? 1 : 0;
}

}  // namespace probe

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "--make") == 0) {
    return probe::make(argv[2], std::strtoull(argv[3], nullptr, 10));
  }
  return argc < 2 ? 2 : probe::run(argc, argv);
}
