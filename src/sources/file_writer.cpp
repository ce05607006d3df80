#include "sources/file_writer.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "os/atomic_file.h"

namespace uffda::sources {
namespace {

std::unexpected<Error> exists(const std::string& path) {
  return fail(Errc::already_exists, "file:" + path + ": there is such a file already: --replace replaces it");
}

class FileWriter final : public SourceWriter {
 public:
  FileWriter(std::string path, os::AtomicFile file, const StoreOptions& options)
      : path_(std::move(path)), file_(std::move(file)), options_(options) {}

  Result<void> write(ByteOffset offset, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t done = ::pwrite(file_.fd(), bytes.data(), bytes.size(), static_cast<off_t>(offset.value));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) return fail_errno(errno, "file:" + path_);
      offset = offset + ByteCount{static_cast<std::uint64_t>(done)};
      bytes = bytes.subspan(static_cast<std::size_t>(done));
    }
    return {};
  }

  Result<void> finish() override {
    // What is left out is a hole, and reads as zeroes.
    if (::ftruncate(file_.fd(), static_cast<off_t>(options_.size.value)) != 0)
      return fail_errno(errno, "file:" + path_);
    using Existing = os::AtomicFile::Existing;
    Result<void> committed = file_.commit(options_.replace ? Existing::replaced : Existing::kept);
    if (!committed && committed.error().code() == Errc::already_exists) return exists(path_);
    return committed;
  }

 private:
  const std::string path_;
  os::AtomicFile file_;
  const StoreOptions options_;
};

}  // namespace

Result<std::unique_ptr<SourceWriter>> create_file(const SourceUri& uri, const StoreOptions& options) {
  const std::string& path = uri.rest();
  if (path.empty()) return fail(Errc::invalid_argument, "file: needs a path, such as file:disk.img");
  struct stat status{};
  if (!options.replace && ::stat(path.c_str(), &status) == 0) return exists(path);
  return std::make_unique<FileWriter>(path, UFFDA_TRY(os::AtomicFile::create(path)), options);
}

}  // namespace uffda::sources
