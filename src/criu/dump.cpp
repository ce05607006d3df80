#include "criu/dump.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>

#include "os/memory.h"

namespace uffda::criu {
namespace {

constexpr unsigned kMaxParents = 256;
constexpr std::uint64_t kMaxImage = std::uint64_t{256} << 20U;  // of the small ones
constexpr std::uint64_t kMaxMemory = std::uint64_t{1} << 46U;  // the cache of what is known of its pages has its limits

Result<os::UniqueFd> open_file(const std::string& path) {
  os::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (!fd) return fail_errno(errno, path);
  return fd;
}

Result<std::vector<std::byte>> read_image(const std::string& path) {
  const os::UniqueFd fd = UFFDA_TRY(open_file(path));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, path);
  if (!S_ISREG(status.st_mode) || static_cast<std::uint64_t>(status.st_size) > kMaxImage)
    return fail(Errc::protocol, path + ": is no image of a CRIU dump");
  std::vector<std::byte> bytes(static_cast<std::size_t>(status.st_size));
  UFFDA_TRY_VOID(os::read_at(fd.get(), {}, bytes));
  return bytes;
}

template <typename Parsed>
Result<Parsed> parse_file(const std::string& path, Result<Parsed> (*parse)(std::span<const std::byte>)) {
  const auto bytes = UFFDA_TRY(read_image(path));
  Result<Parsed> parsed = parse(bytes);
  if (!parsed) return std::unexpected(parsed.error().within(path));
  return parsed;
}

std::string image(const std::string& directory, const char* kind, std::int64_t number) {
  return fmt::format("{}/{}-{}.img", directory, kind, number);
}

/// Without the links on the way to it, of which a long chain would have too many.
Result<std::string> parent_of(const std::string& directory) {
  const std::string link = directory + "/parent";
  const std::unique_ptr<char, decltype(&std::free)> path(::realpath(link.c_str(), nullptr), &std::free);
  if (path == nullptr) return fail_errno(errno, link);
  return std::string(path.get());
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

}  // namespace

Result<Layout> Layout::read(const std::string& directory) {
  Layout layout;
  for (const pid_t pid : UFFDA_TRY(parse_file(directory + "/pstree.img", parse_tasks))) {
    Task task{.pid = pid, .vmas = {}};
    if (layout.find(pid) != nullptr)
      return fail(Errc::protocol, fmt::format("{}/pstree.img: has task {} twice", directory, pid));
    const std::string path = image(directory, "mm", pid);
    // A zombie has neither.
    if (exists(path) || exists(image(directory, "pagemap", pid))) {
      for (const MemoryRange& range : UFFDA_TRY(parse_file(path, parse_lazy_memory))) {
        task.vmas.push_back({.range = range, .offset = {layout.size_.value}});
        layout.size_ += range.length;
        if (layout.size_.value > kMaxMemory)
          return fail(Errc::unsupported, directory + ": its tasks have more than 64 TiB of memory");
      }
    }
    layout.tasks_.push_back(std::move(task));
  }
  return layout;
}

const Task* Layout::find(pid_t pid) const {
  const auto found = std::ranges::find(tasks_, pid, &Task::pid);
  return found != tasks_.end() ? &*found : nullptr;
}

Layout::Place Layout::place_of(ByteOffset offset) const {
  for (const Task& task : tasks_) {
    if (task.vmas.empty() || task.vmas.back().offset + task.vmas.back().range.length <= offset) continue;
    const auto vma = std::ranges::upper_bound(task.vmas, offset, {}, &Vma::offset) - 1;
    return {.pid = task.pid, .address = vma->range.start + (offset - vma->offset)};
  }
  return {};
}

Result<std::uint32_t> Pages::open_pages(const std::string& directory, std::uint32_t id) {
  const std::string path = image(directory, "pages", id);
  const auto known = std::ranges::find(names_, path);
  if (known != names_.end()) return static_cast<std::uint32_t>(known - names_.begin());
  files_.push_back(UFFDA_TRY(open_file(path)));
  names_.push_back(path);
  return static_cast<std::uint32_t>(files_.size() - 1);
}

Result<std::vector<Pages::Located>> Pages::locate(const std::string& directory, pid_t pid, unsigned depth) {
  const std::string path = image(directory, "pagemap", pid);
  const Pagemap pagemap = UFFDA_TRY(parse_file(path, parse_pagemap));
  if (depth > kMaxParents) return fail(Errc::protocol, path + ": builds on too many dumps, or on itself");
  std::vector<Located> parent;
  if (std::ranges::find(pagemap.runs, PagemapRun::Where::parent, &PagemapRun::where) != pagemap.runs.end())
    parent = UFFDA_TRY(locate(UFFDA_TRY(parent_of(directory)), pid, depth + 1));
  std::vector<Located> all;
  ByteOffset at;
  for (const PagemapRun& run : pagemap.runs) {
    if (run.where == PagemapRun::Where::remote) {
      all.push_back({.range = run.range, .file = Run::kRemote, .at = {}});
      continue;
    }
    if (run.where == PagemapRun::Where::here) {
      all.push_back({.range = run.range, .file = UFFDA_TRY(open_pages(directory, pagemap.pages_id)), .at = at});
      at = at + run.range.length;
      continue;
    }
    Address next = run.range.start;
    for (auto found = std::ranges::partition_point(parent, [&](const Located& one) { return one.range.end() <= next; });
         next < run.range.end() && found != parent.end() && found->range.start <= next; ++found) {
      const ByteCount skip = next - found->range.start;
      const Address end = std::min(run.range.end(), found->range.end());
      all.push_back({.range = {.start = next, .length = end - next}, .file = found->file, .at = found->at + skip});
      next = end;
    }
    if (next < run.range.end())
      return fail(Errc::protocol, fmt::format("{}: page {:#x} is not in the dump that it builds on", path, next.value));
  }
  return all;
}

Result<Pages> Pages::open(const std::string& directory, const Layout& layout) {
  Pages pages;
  for (const Task& task : layout.tasks()) {
    if (task.vmas.empty()) continue;
    const std::vector<Located> all = UFFDA_TRY(pages.locate(directory, task.pid, 0));
    for (const Vma& vma : task.vmas) {
      auto found =
          std::ranges::partition_point(all, [&](const Located& one) { return one.range.end() <= vma.range.start; });
      for (; found != all.end() && found->range.start < vma.range.end(); ++found) {
        const Address start = std::max(found->range.start, vma.range.start);
        const Address end = std::min(found->range.end(), vma.range.end());
        pages.runs_.push_back({.range = {.start = vma.offset + (start - vma.range.start), .length = end - start},
                               .file = found->file,
                               .at = found->at + (start - found->range.start)});
      }
    }
  }
  return pages;
}

std::span<const Run> Pages::from(ByteOffset offset) const {
  const auto first = std::ranges::partition_point(runs_, [&](const Run& run) { return run.range.end() <= offset; });
  return {first, runs_.end()};
}

}  // namespace uffda::criu
