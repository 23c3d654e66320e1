addEventListener("keydown",function(e){var o=document.querySelector(".panel:target");if(!o)return;
var a=o.querySelectorAll("nav a"),i={ArrowLeft:0,ArrowRight:1,Escape:2}[e.key];
if(i!==undefined&&a[i]){e.preventDefault();location.replace(a[i].getAttribute("href"))}});
