// What DeepSeek-V3.2 writes between a conversation's texts.    Spec G.1; encoding_dsv32.py
#pragma once

#include <optional>
#include <string_view>

namespace fulgur::v32 {

inline constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>", kEos = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUser = "<｜User｜>", kAssistant = "<｜Assistant｜>";
inline constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";
inline constexpr std::string_view kMarker = "｜DSML｜";
inline constexpr std::string_view kCalls = "<｜DSML｜function_calls", kCallsEnd = "</｜DSML｜function_calls>";
inline constexpr std::string_view kInvoke = "<｜DSML｜invoke", kInvokeEnd = "</｜DSML｜invoke";
inline constexpr std::string_view kParameter = "<｜DSML｜parameter", kParameterEnd = "/｜DSML｜parameter";  // behind a '<'

// Attributes as they are written: a name, and a parameter's kind behind it.
inline constexpr std::string_view kName = " name=\"", kIsString = "\" string=\"true\">", kIsOther = "\" string=\"false\">";

// The name in what stands between kInvoke and the next tag: ' name="NAME">' and a line end. The reference's pattern lets one more
// line end pass.
inline std::optional<std::string_view> call_name(std::string_view header) {
  constexpr std::string_view kLast = "\">\n";
  if (header.ends_with("\n\n")) header.remove_suffix(1);
  if (header.size() < kName.size() + kLast.size() || !header.starts_with(kName) || !header.ends_with(kLast)) return std::nullopt;
  return header.substr(kName.size(), header.size() - kName.size() - kLast.size());
}

}  // namespace fulgur::v32
