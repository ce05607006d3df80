// What the sessions of one server share: its page cache, its exports and the address spaces of its clients.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>

#include "mm/core.h"
#include "server/address_spaces.h"
#include "server/exports.h"
#include "server/fills.h"
#include "server/holder.h"
#include "server/serve.h"
#include "server/session.h"
#include "server/watchers.h"

namespace uffda {

/// Threads: any.
class Service final : public HandoffBackend {
 public:
  /// Opens the exports. `on_change` is called from any thread when address spaces have gone.
  /// `held`: what outlives this server; null: nothing.
  static Result<std::unique_ptr<Service>> create(const ServeOptions& options, std::function<void()> on_change,
                                                 Held* held = nullptr);
  ~Service() override;
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  Result<Opened> open_export(const std::string& name) override;
  Result<handoff::Token> attach(Attach request) override;
  Result<void> map(const handoff::Token& token, const std::string& name, const MapPlace& place) override;
  Result<void> map_shared(const handoff::Token& token, const std::string& name, const MapPlace& place) override;
  struct CopiedPlace {
    std::string name;  ///< of the export
    MapPlace place;
  };
  /// For clients that only know anonymous memory: takes a userfaultfd over (as attach), and copies bytes of exports
  /// into `places` as they are touched. Faults that somebody else has read come again. Nothing changes unless all
  /// places can be served. Errors: as attach and map.
  Result<void> attach_copied(Attach request, std::span<const CopiedPlace> places);
  Result<void> unmap(const handoff::Token& token, Address address, ByteCount length) override;
  /// Gives up when the server ends.
  Result<std::size_t> read(const std::string& name, ByteOffset offset, std::span<std::byte> bytes) override;
  Result<void> write(const std::string& name, ByteOffset offset, std::span<const std::byte> bytes) override;
  Result<void> sync(const std::string& name, ByteRange range, std::uint64_t& seen) override;
  Result<ByteCount> resize(const std::string& name, std::uint64_t size, Resize how) override;
  Result<os::UniqueFd> open_device() override;
  Result<std::string> stats() override;
  Result<void> prepare_takeover() override;

  [[nodiscard]] Watchers& watchers() { return *watchers_; }
  [[nodiscard]] AddressSpaces& address_spaces() { return *spaces_; }
  [[nodiscard]] const Exports& exports() const { return exports_; }
  [[nodiscard]] Fills& fills() { return *fills_; }
  void count_connections(std::size_t connections) { connections_.store(connections, std::memory_order_relaxed); }

  /// Requests that wait end with Errc::gone, and fault loops stop.
  void stop();
  [[nodiscard]] std::string report(std::size_t max_bytes) const;

 private:
  Result<void> attach_mapping(const handoff::Token& token, const std::string& name, const MapPlace& place,
                              Sharing sharing);
  [[nodiscard]] Result<std::shared_ptr<MemoryObject>> find_writable(const std::string& name) const;
  Service(const ServeOptions& options, bool held) : max_mappings_(options.max_mappings), held_(held) {}
  void adopt_clients(KeptState& kept);
  /// From any thread, with locks of the core held.
  void client_lost(const os::ProcessHandle& process, const MemoryObject& object) const;

  const std::size_t max_mappings_;
  const bool held_;
  std::shared_ptr<Core> core_;
  std::shared_ptr<Watchers> watchers_ = std::make_shared<Watchers>();  // the core's hook has it, too
  Exports exports_;
  std::set<const MemoryObject*> killing_;  // what whoever touches it in vain is killed for
  std::unique_ptr<Fills> fills_;           // before the exports go
  std::shared_ptr<AddressSpaces> spaces_;
  std::atomic<std::size_t> connections_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace uffda
