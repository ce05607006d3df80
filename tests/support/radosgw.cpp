#include "support/radosgw.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "support/child_process.h"

namespace uffda::test {
namespace {

namespace fs = std::filesystem;

std::string text_of(const fs::path& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

/// The directory and the script, which stops the daemons when it ends.
struct Cluster {
  fs::path directory;
  ChildProcess script;
  ~Cluster() {
    script.signal(SIGTERM);
    (void)script.wait(Deadline::after(std::chrono::seconds(10)));
    fs::remove_all(directory);
  }
};

}  // namespace

Result<Radosgw*> Radosgw::start() {
  std::string directory = testing::TempDir() + "uffda-radosgw-XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr) return fail_errno(errno, directory);
  auto process = ChildProcess::start({"bash", UFFDA_TEST_CLIENTS "/_radosgw.sh", directory}, directory + "/script.out");
  if (!process) return fail(Errc::unsupported, process.error().context());
  static Cluster cluster{directory, std::move(*process)};
  // It starts two daemons and waits for each: the file that it makes is the only sign.
  const Deadline patience = Deadline::after(std::chrono::minutes(4));
  while (!fs::exists(directory + "/ready")) {
    if (fs::exists(directory + "/failed")) return fail(Errc::unsupported, text_of(directory + "/failed"));
    if (patience.passed()) return fail(Errc::unsupported, "radosgw is not up after four minutes");
    ::poll(nullptr, 0, 50);
  }
  return new Radosgw(text_of(directory + "/endpoint"));
}

Result<Radosgw*> Radosgw::shared() {
  static const Result<Radosgw*> started = start();
  return started;
}

Result<void> Radosgw::put(const std::string& file, const std::string& path) const {
  auto curl = UFFDA_TRY(ChildProcess::start(
      {"curl", "--silent", "--show-error", "--fail", "--max-time", "60", "--aws-sigv4", "aws:amz:us-east-1:s3",
       "--user", std::string(kKey) + ":" + kSecret, "--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD",
       "--upload-file", file, endpoint_ + "/" + kBucket + "/" + path}));
  const int status = UFFDA_TRY(curl.wait(Deadline::after(std::chrono::minutes(2))));
  if (status != 0) return fail(Errc::io, "curl could not store the object: " + std::to_string(status));
  return {};
}

}  // namespace uffda::test
