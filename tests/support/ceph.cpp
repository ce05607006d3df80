#include "support/ceph.h"

#include <dirent.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include "os/fd.h"

namespace uffda::test {
namespace {

namespace fs = std::filesystem;

std::string contents(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

/// What a daemon or client of Ceph answers on its admin socket; empty if it is going away.
std::string ask(const fs::path& socket, const std::string& command) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.native().size() >= sizeof address.sun_path) return {};
  std::ranges::copy(socket.native(), address.sun_path);
  const os::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return {};
  const std::string request = "{\"prefix\":\"" + command + "\"}";
  if (::write(fd.get(), request.c_str(), request.size() + 1) != static_cast<ssize_t>(request.size() + 1)) return {};
  std::string answer;
  char bytes[4096];
  for (ssize_t got = 0; (got = ::read(fd.get(), bytes, sizeof bytes)) > 0;)
    answer.append(bytes, static_cast<std::size_t>(got));
  return answer;
}

std::uint64_t count(const std::string& text, const std::string& what) {
  std::uint64_t found = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++found;
  return found;
}

}  // namespace

Result<CephCluster*> CephCluster::shared() {
  static const Result<std::unique_ptr<CephCluster>> cluster = start();
  if (!cluster) return std::unexpected(cluster.error());
  return cluster->get();
}

Result<std::unique_ptr<CephCluster>> CephCluster::start() {
  std::string directory = (fs::temp_directory_path() / "uffda-ceph-XXXXXX").string();
  if (::mkdtemp(directory.data()) == nullptr) return fail_errno(errno, directory);
  auto shell =
      ChildProcess::start({"bash", UFFDA_TEST_CLIENTS "/_ceph.sh", directory, "memstore"}, directory + "/shell.out");
  if (!shell) return fail(Errc::unsupported, shell.error().message());
  std::unique_ptr<CephCluster> cluster(new CephCluster(directory, *std::move(shell)));
  const Deadline deadline = Deadline::after(std::chrono::minutes(3));
  while (!fs::exists(directory + "/ready")) {
    if (fs::exists(directory + "/failed")) return fail(Errc::unsupported, "Ceph: " + contents(directory + "/failed"));
    if (deadline.passed()) return fail(Errc::timed_out, "Ceph does not start: " + contents(directory + "/shell.out"));
    ::poll(nullptr, 0, 20);  // the file is the only event there is to wait for
  }
  return cluster;
}

CephCluster::~CephCluster() {
  shell_.kill();
  std::error_code ignored;
  fs::remove_all(directory_, ignored);
}

std::string CephCluster::uri(const std::string& object) const {
  return "rados:uffda/" + object + "?conf=" + directory_ + "/ceph.conf";
}

std::string CephCluster::fresh_name() { return "image" + std::to_string(++names_); }

void CephCluster::stop_osd() const {
  const int pid = std::stoi(contents(directory_ + "/osd.0.pid"));
  ::kill(pid, SIGSTOP);
  // The signal reaches its threads one by one. Their states are the only event there is to wait for.
  const auto stands = [](const auto& thread) {
    const std::string stat = contents(thread.path() / "stat");
    return stat.empty() || stat.find(") T ") != std::string::npos;
  };
  while (!std::ranges::all_of(fs::directory_iterator("/proc/" + std::to_string(pid) + "/task"), stands))
    ::poll(nullptr, 0, 1);
}

void CephCluster::continue_osd() const { ::kill(std::stoi(contents(directory_ + "/osd.0.pid")), SIGCONT); }

Result<std::string> CephCluster::rados(const std::vector<std::string>& words) const {
  const std::string output = directory_ + "/rados.out";
  std::error_code ignored;
  fs::remove(output, ignored);
  std::vector<std::string> arguments{"rados", "--conf", directory_ + "/ceph.conf", "-p", "uffda"};
  arguments.insert(arguments.end(), words.begin(), words.end());
  ChildProcess process = UFFDA_TRY(ChildProcess::start(arguments, output));
  const int status = UFFDA_TRY(process.wait(Deadline::after(std::chrono::minutes(1))));
  if (status != 0) return fail(Errc::io, "rados " + words.front() + ": " + contents(output));
  return contents(output);
}

std::vector<std::string> CephCluster::objects(const std::string& prefix) const {
  std::vector<std::string> found;
  std::istringstream names(rados({"ls"}).value_or(""));
  for (std::string name; std::getline(names, name);)
    if (name.starts_with(prefix)) found.push_back(name);
  return found;
}

std::uint64_t CephCluster::sum(const std::string& command,
                               const std::function<std::uint64_t(const std::string&)>& measure) const {
  const std::string mine = "client.admin." + std::to_string(::getpid()) + ".";
  std::uint64_t total = 0;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(mine)) total += measure(ask(entry.path(), command));
  }
  return total;
}

std::uint64_t CephCluster::requests_under_way() const {
  return sum("objecter_requests", [](const std::string& answer) { return count(answer, "\"tid\""); });
}

std::uint64_t CephCluster::requests_sent() const {
  return sum("perf dump", [](const std::string& answer) {
    const std::string key = "\"op_send\":";
    const std::size_t at = answer.find(key);
    return at == std::string::npos ? 0 : std::strtoull(answer.c_str() + at + key.size(), nullptr, 10);
  });
}

}  // namespace uffda::test
