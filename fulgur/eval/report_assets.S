// The report's page and Chart.js, as bytes of the program.
    .section .rodata
    .global fulgur_report_html, fulgur_report_html_end, fulgur_chart_js, fulgur_chart_js_end
fulgur_report_html:
    .incbin FULGUR_REPORT_HTML
fulgur_report_html_end:
fulgur_chart_js:
    .incbin FULGUR_CHART_JS
fulgur_chart_js_end:
    .section .note.GNU-stack, "", %progbits
