// The report's pages and Chart.js, as bytes of the program. Pages are found from the repository's root (-I).
    .section .rodata
    .global fulgur_report_html, fulgur_report_html_end, fulgur_compare_html, fulgur_compare_html_end
    .global fulgur_report_common, fulgur_report_common_end, fulgur_chart_js, fulgur_chart_js_end
fulgur_report_html:
    .incbin "fulgur/eval/report.html"
fulgur_report_html_end:
fulgur_compare_html:
    .incbin "fulgur/eval/compare.html"
fulgur_compare_html_end:
fulgur_report_common:
    .incbin "fulgur/eval/report_common.html"
fulgur_report_common_end:
fulgur_chart_js:
    .incbin FULGUR_CHART_JS
fulgur_chart_js_end:
    .section .note.GNU-stack, "", %progbits
