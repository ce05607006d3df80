#include "exec/program.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "os/fd.h"

namespace uffda::exec {

namespace {

constexpr int kMaxInterpreters = 5;         // one more than the kernel follows
constexpr std::size_t kHeadSize = 256;      // what the kernel reads of a script's first line
constexpr std::size_t kMaxHeaders = 65536;  // of one program, by the format

std::string find_program(const std::string& program) {
  if (program.contains('/')) return program;
  const char* path = std::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/bin:/usr/bin";
  for (;;) {
    const std::size_t end = rest.find(':');
    const std::string_view directory = rest.substr(0, end);
    std::string file = directory.empty() ? program : std::string(directory) + "/" + program;
    struct stat status{};
    if (::stat(file.c_str(), &status) == 0 && S_ISREG(status.st_mode) && ::access(file.c_str(), X_OK) == 0) return file;
    if (end == std::string_view::npos) return {};
    rest.remove_prefix(end + 1);
  }
}

/// The interpreter that a script's first line names.
std::string interpreter_of(std::string_view line) {
  line.remove_prefix(2);
  line = line.substr(0, line.find('\n'));
  const std::size_t start = line.find_first_not_of(" \t");
  if (start == std::string_view::npos) return {};
  line.remove_prefix(start);
  return std::string(line.substr(0, line.find_first_of(std::string_view(" \t\0", 3))));
}

bool starts_by_loader(int file, const Elf64_Ehdr& header) {
  // The shim is a library of this machine; the loaders of others pass it over.
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64) return false;
  for (std::size_t i = 0; i < header.e_phnum && i < kMaxHeaders; ++i) {
    Elf64_Phdr part{};
    const auto offset = static_cast<off_t>(header.e_phoff + i * sizeof part);
    if (::pread(file, &part, sizeof part, offset) != static_cast<ssize_t>(sizeof part)) return false;
    if (part.p_type == PT_INTERP) return true;
  }
  return false;
}

}  // namespace

std::optional<std::string> static_program(const std::string& program) {
  std::string at = find_program(program);
  for (int depth = 0; depth < kMaxInterpreters && !at.empty(); ++depth) {
    const os::UniqueFd file(::open(at.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    std::array<char, kHeadSize> head{};
    if (!file) return std::nullopt;
    const ssize_t got = ::pread(file.get(), head.data(), head.size(), 0);
    if (got <= 0) return std::nullopt;
    const std::string_view text(head.data(), static_cast<std::size_t>(got));
    if (text.starts_with(std::string_view(ELFMAG, SELFMAG))) {
      Elf64_Ehdr header{};
      std::memcpy(&header, head.data(), sizeof header);  // zero where the file is shorter
      if (starts_by_loader(file.get(), header)) return std::nullopt;
      return at;
    }
    at = text.starts_with("#!") ? interpreter_of(text) : "/bin/sh";  // as execvp runs what the kernel does not know
  }
  return std::nullopt;
}

}  // namespace uffda::exec
