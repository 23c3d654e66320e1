"""The style of a report page, for phone and desk, light and dark, and the few keys of its image box."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1d2127;--soft:#626a75;--rule:#e2e0da;--bar:#efede8;
--c1:#2f6fb3;--c2:#c8641c;--c3:#2c8a64;--c4:#8457b0;--good:#2c8a64;--bad:#b3403a}
@media (prefers-color-scheme:dark){:root{--paper:#15181c;--card:#1c2026;--ink:#e6e8eb;--soft:#9aa3ae;--rule:#30363f;
--bar:#272c34;--c1:#6da8e6;--c2:#eb9a5b;--c3:#5dc196;--c4:#b893e0;--good:#5dc196;--bad:#e6827c}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:40px 0 12px;padding-top:12px;border-top:1px solid var(--rule)}
h3{font-size:.95rem;margin:20px 0 8px;color:var(--soft);font-weight:600}
p{margin:6px 0}
.soft,small{color:var(--soft)}
.facts{display:flex;flex-wrap:wrap;gap:4px 18px;color:var(--soft);font-size:.92rem;margin:4px 0 0}
.facts b{color:var(--ink);font-weight:600}
.tiles3{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:12px;margin-top:20px}
.score{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 16px}
.score b{display:block;font-size:2rem;line-height:1.15;font-variant-numeric:tabular-nums}
.score b small{font-size:1rem;font-weight:400}
.score small{display:block;font-size:.82rem;line-height:1.35}
.score b small{display:inline}
.score.s1{border-top:3px solid var(--c1)}
.score.s2{border-top:3px solid var(--c2)}.score.s3{border-top:3px solid var(--c3)}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:20px 28px;align-items:start}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;width:100%}
th{text-align:left;font-weight:600;color:var(--soft);border-bottom:1px solid var(--rule);padding:6px 14px 6px 0;
vertical-align:bottom}
td{padding:6px 14px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
td.n,th.n{text-align:right}td.n{white-space:nowrap}
td.wide{min-width:14em}
table.lines td:first-child{min-width:11em}
ol.steps{list-style:none;margin:0;padding:0}
ol.steps li{display:grid;grid-template-columns:minmax(7.5em,11em) 1fr 14.5em;gap:2px 14px;align-items:center;
padding:5px 0;border-bottom:1px solid var(--rule);font-size:.92rem}
ol.steps .time{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
ol.steps small{display:block;line-height:1.3}
.track{background:var(--bar);border-radius:3px;height:9px;overflow:hidden}
.track i{display:block;height:100%;border-radius:3px;background:var(--c1)}
.track i.reused{background:repeating-linear-gradient(135deg,var(--c1) 0 3px,transparent 3px 6px);opacity:.7}
.classes{columns:2 420px;column-gap:28px;margin:0;padding:0;list-style:none}
.classes li{break-inside:avoid;display:grid;grid-template-columns:8.5em 1fr;gap:10px;align-items:center;padding:4px 0;
font-size:.88rem}
.classes .name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.classes .bar{display:grid;grid-template-columns:1fr 2.9em;gap:8px;align-items:center;height:13px}
.classes .bar span{text-align:right;font-size:.78rem;line-height:1;font-variant-numeric:tabular-nums;color:var(--soft)}
.classes .track{height:8px}
.back1{background:var(--c1)!important}.back2{background:var(--c2)!important}.back3{background:var(--c3)!important}
.back4{background:var(--c4)!important}
.key{display:inline-flex;align-items:center;gap:6px;margin-left:14px;font-weight:400;color:var(--soft);font-size:.85rem}
.key i{width:12px;height:12px;border-radius:3px;display:inline-block;flex:none}
p .key:first-child{margin-left:0}
figure{margin:0}
.chart figcaption{font-size:.92rem;font-weight:600;margin-bottom:4px}
.chart svg{display:block;width:100%;height:auto;max-width:640px}
svg.confusion{display:block;width:100%;height:auto}
svg text{font-family:inherit}
.tick{font-size:11px;fill:var(--soft)}.axis{font-size:11px;fill:var(--soft)}.mark{font-size:11.5px;fill:var(--ink);paint-order:stroke;
stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.label{fill:var(--ink)}.over{fill:var(--card)}
.grid{stroke:var(--rule);stroke-width:1}
.line1,.line2,.line3,.line4{fill:none;stroke-width:2;stroke-linejoin:round}
.line1{stroke:var(--c1)}.line2{stroke:var(--c2)}.line3{stroke:var(--c3)}.line4{stroke:var(--c4)}
.fill1{fill:var(--c1)}.fill2{fill:var(--c2)}.fill3{fill:var(--c3)}.fill4{fill:var(--c4)}
.cell{fill:var(--c2)}.cell.hit{fill:var(--c1)}
details{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:10px 16px}
summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;font-size:.82rem;line-height:1.45;margin:10px 0 4px}
.up{color:var(--good)}.down{color:var(--bad)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:14px}
.panel{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:8px;height:100%}
.panel .open{display:grid;grid-auto-flow:column;grid-auto-columns:1fr;gap:5px;color:inherit;text-decoration:none;
cursor:zoom-in}
.panel img{display:block;width:100%;height:auto;border-radius:4px;background:var(--bar)}
.panel .open span{font-size:.72rem;color:var(--soft);line-height:1.2;display:block;margin-top:3px}
.panel figcaption{font-size:.82rem;line-height:1.35;margin-top:6px;display:flex;flex-wrap:wrap;gap:2px 10px}
.panel figcaption b{font-weight:600;overflow-wrap:anywhere}
.swatch{display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:5px;vertical-align:-1px;
border:1px solid rgba(128,128,128,.5)}
.panel nav{display:none}
.panel:target{outline:0;position:fixed;inset:0;z-index:9;height:auto;border:0;border-radius:0;overflow:auto;
padding:56px 16px 24px;background:var(--paper)}
.panel:target .open{grid-auto-flow:row;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px;
cursor:default;max-width:1180px;margin:0 auto;pointer-events:none}
.panel:target .open span{font-size:.9rem}
.panel:target img{max-height:calc((100vh - 210px)/2);object-fit:contain;object-position:left;
background:none}
.panel:target figcaption{font-size:1rem;max-width:1180px;margin:14px auto 0}
.panel:target nav{display:flex;position:fixed;top:0;left:0;right:0;justify-content:flex-end;gap:8px;padding:8px 12px;
background:var(--paper);border-bottom:1px solid var(--rule)}
.panel nav a{min-width:44px;height:36px;line-height:34px;text-align:center;border:1px solid var(--rule);
border-radius:8px;text-decoration:none;color:var(--ink);background:var(--card);font-size:1.05rem;padding:0 10px}
body:has(.panel:target){overflow:hidden}
a:focus-visible,summary:focus-visible{outline:2px solid var(--c1);outline-offset:2px}
footer{margin-top:48px;font-size:.82rem;color:var(--soft)}
@media (max-width:640px){.panel:target img{max-height:none}.tick,.axis{font-size:12.5px}.mark{font-size:13px}
main{padding:16px 12px 48px}h1{font-size:1.4rem}
ol.steps li{grid-template-columns:1fr auto}ol.steps .track{grid-column:1/-1;grid-row:2}
.panel:target{padding:52px 8px 16px}.classes li{grid-template-columns:6.5em 1fr}
table.lines thead{display:none}table.lines tr{display:grid;grid-template-columns:1fr 1fr 1fr;gap:0 12px;padding:8px 0;
border-bottom:1px solid var(--rule)}table.lines td{border:0;padding:1px 0;text-align:left}
table.lines td.n{text-align:left;white-space:normal}
table.lines td:first-child,table.lines td.wide{grid-column:1/-1;min-width:0}table.lines td:first-child{font-weight:600}
table.lines td[data-name]:not(.wide):not(:first-child):before{content:attr(data-name);display:block;font-size:.75rem;
color:var(--soft)}}
@media print{.panel nav{display:none!important}details{border:0;padding:0}}
"""

SCRIPT = """
addEventListener("keydown",function(e){var o=document.querySelector(".panel:target");if(!o)return;
var a=o.querySelectorAll("nav a"),i={ArrowLeft:0,ArrowRight:1,Escape:2}[e.key];
if(i!==undefined&&a[i]){e.preventDefault();location.replace(a[i].getAttribute("href"))}});
"""
"""Arrow keys and Escape; the page works without it."""
