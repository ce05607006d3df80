#include "exec/report.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "os/fd.h"

namespace uffda::exec {

namespace {

using Json = nlohmann::ordered_json;

Json json_of(const ExecFacts& facts) {
  Json exec;
  exec["program"] = facts.program;
  const std::optional<int> status = facts.wait_status;
  exec["exit_status"] = status && WIFEXITED(*status) ? Json(WEXITSTATUS(*status)) : Json(nullptr);
  exec["signal"] = status && WIFSIGNALED(*status) ? Json(WTERMSIG(*status)) : Json(nullptr);
  exec["seconds"] = std::chrono::duration<double>(facts.elapsed).count();
  exec["address_spaces"] = facts.address_spaces;
  exec["server_died"] = facts.server_died;
  exec["maps"] = Json::array();
  for (std::size_t i = 0; i < facts.maps.size(); ++i) {
    const ResolvedMap& map = facts.maps[i];
    const fuse::FileCounts counts = i < facts.counts.size() ? facts.counts[i] : fuse::FileCounts{};
    exec["maps"].push_back({{"path", map.path},
                            {"source", map.source},
                            {"export", map.name},
                            {"bytes", map.size},
                            {"fuse_opens", counts.opens},
                            {"fuse_reads", counts.reads},
                            {"fuse_bytes_read", counts.bytes},
                            {"fuse_errors", counts.errors}});
  }
  return exec;
}

}  // namespace

Result<void> write_report(const std::string& file, const std::optional<std::string>& server, const ExecFacts& facts) {
  Json report = Json::object();
  if (server) report = Json::parse(*server, nullptr, /*allow_exceptions=*/false);
  if (!report.is_object()) report = Json::object();
  report["exec"] = json_of(facts);
  // Names come from users and need not be UTF-8.
  const std::string text = report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const std::string temporary = file + ".tmp" + std::to_string(::getpid());
  const os::UniqueFd out(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!out) return fail_errno(errno, "report " + temporary);
  if (::write(out.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::rename(temporary.c_str(), file.c_str()) != 0) {
    const int error = errno;
    (void)::unlink(temporary.c_str());
    return fail_errno(error, "report " + file);
  }
  return {};
}

}  // namespace uffda::exec
