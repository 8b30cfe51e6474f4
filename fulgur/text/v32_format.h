// What DeepSeek-V3.2 writes between a conversation's texts.    Spec G.1; encoding_dsv32.py
#pragma once

#include <string_view>

namespace fulgur::v32 {

inline constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>", kEos = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUser = "<｜User｜>", kAssistant = "<｜Assistant｜>";
inline constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";
inline constexpr std::string_view kMarker = "｜DSML｜";
inline constexpr std::string_view kCalls = "<｜DSML｜function_calls", kCallsEnd = "</｜DSML｜function_calls>";
inline constexpr std::string_view kInvoke = "<｜DSML｜invoke", kInvokeEnd = "</｜DSML｜invoke";
inline constexpr std::string_view kParameter = "<｜DSML｜parameter", kParameterEnd = "/｜DSML｜parameter";  // behind a '<'

}  // namespace fulgur::v32
