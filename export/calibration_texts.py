"""Built-in texts in many languages: int8 calibrates on one half and is checked on the other, which it never saw.

Every sentence was written for this purpose; none is taken from a corpus or another text. Neighbours in `PASSAGES` are
related languages, or languages written in kindred scripts, so that its even and its odd places hold the same families.
"""

PASSAGES: dict[str, tuple[str, str]] = {  # BCP-47 language tag -> (question, passage that answers it)
    "en": (
        "Why does a version control system store the whole history of a project?",
        "A version control system records every change that is made to a set of files, together with its author and "
        "the date. Because the whole history is stored, a team can find out when a fault was introduced and go back "
        "to the last state that worked. Each developer works on a separate branch and merges it once the tests have "
        "passed. Conflicts arise only where two people have edited the same lines, and these have to be resolved by "
        "hand.",
    ),
    "de": (
        "Wie lange kann man einen im Internet geschlossenen Kaufvertrag widerrufen?",
        "Wer eine Ware im Internet bestellt, kann den Vertrag in der Regel innerhalb von vierzehn Tagen ohne Angabe "
        "von Gründen widerrufen. Die Frist beginnt an dem Tag, an dem die Ware beim Käufer eintrifft. Der Händler "
        "muss den Kaufpreis samt den üblichen Versandkosten erstatten, darf damit aber warten, bis er die Sendung "
        "zurückerhalten hat. Ausgenommen sind unter anderem verderbliche Lebensmittel und Gegenstände, die nach den "
        "Wünschen des Kunden angefertigt wurden.",
    ),
    "nl": (
        "Hoe houdt een polder zijn land droog?",
        "Een polder ligt vaak lager dan het water eromheen en wordt door dijken beschermd. Regen en kwelwater "
        "verzamelen zich in sloten, die uitkomen op een bredere vaart. Vroeger maalden windmolens dat water omhoog "
        "naar een boezem; tegenwoordig doen elektrische gemalen dat werk vrijwel geheel automatisch. Het waterschap "
        "meet dag en nacht de waterstand en bepaalt per gebied een peil, waarbij de wensen van boeren, bewoners en "
        "natuurbeheerders tegen elkaar worden afgewogen.",
    ),
    "sv": (
        "Varför får norrskenet olika färger?",
        "Norrsken uppstår när elektriskt laddade partiklar från solen följer jordens magnetfält in mot polerna och "
        "krockar med gaser högt uppe i atmosfären. Syre på ungefär hundra kilometers höjd ger det vanliga gröna "
        "ljuset, medan syre högre upp lyser rött. Kväve bidrar med blå och violetta toner längs draperiernas "
        "nederkant. Bäst syns fenomenet under klara vinternätter, långt från städernas belysning, och särskilt när "
        "solen har varit ovanligt aktiv några dagar tidigare.",
    ),
    "fr": (
        "Que faire quand une mayonnaise se sépare ?",
        "La mayonnaise est une émulsion : de fines gouttelettes d'huile restent en suspension dans l'eau grâce à la "
        "lécithine du jaune d'œuf. Pour la réussir, il faut verser l'huile en filet au début, sans cesser de "
        "fouetter, avec des ingrédients à la même température. Si la sauce tranche, on met une cuillerée d'eau tiède "
        "ou un nouveau jaune dans un bol propre, puis on y incorpore peu à peu le mélange raté. Un trait de vinaigre "
        "ou de jus de citron la rend ensuite plus légère.",
    ),
    "es": (
        "¿Qué diferencia hay entre los dos tipos de inhalador para el asma?",
        "El asma es una inflamación crónica de los bronquios que dificulta el paso del aire y provoca tos, silbidos y "
        "sensación de ahogo. El tratamiento combina normalmente dos clases de inhaladores. Los de alivio dilatan los "
        "bronquios en pocos minutos y se usan durante una crisis, mientras que los de mantenimiento contienen un "
        "corticoide que reduce la inflamación y deben tomarse todos los días, aunque el paciente se encuentre bien. "
        "Después de cada dosis de corticoide conviene enjuagarse la boca con agua.",
    ),
    "pt": (
        "Quando é que um jogador está em posição de fora de jogo?",
        "No futebol, um jogador está em posição de fora de jogo quando se encontra no meio-campo adversário, à frente "
        "da bola e mais perto da linha de baliza do que o penúltimo defensor. Estar nessa posição não é, por si só, "
        "uma infração: o árbitro só interrompe a partida se o jogador interferir na jogada. Também não há fora de "
        "jogo num pontapé de baliza, num lançamento lateral ou num pontapé de canto. Em muitas competições, os lances "
        "duvidosos são revistos em vídeo.",
    ),
    "it": (
        "Che differenza c'è tra un mutuo a tasso fisso e uno a tasso variabile?",
        "Chi compra una casa a credito deve decidere come verrà calcolato l'interesse. Con il tasso fisso la rata "
        "rimane uguale per tutta la durata del prestito, e la famiglia sa fin dall'inizio quanto spenderà ogni mese. "
        "Con il tasso variabile la rata segue l'andamento dei mercati: all'inizio è spesso più bassa, ma può "
        "aumentare di parecchio negli anni successivi. Prima di firmare il mutuo è utile confrontare il costo "
        "complessivo, che comprende anche le spese di perizia, l'assicurazione e le imposte.",
    ),
    "pl": (
        "Dlaczego sól była dawniej tak cennym towarem?",
        "Sól wydobywano w Małopolsce już w średniowieczu, a dochody z kopalń stanowiły znaczną część skarbu "
        "królewskiego. Była cennym towarem, ponieważ bez niej nie dało się przechować mięsa ani ryb przez zimę. "
        "Górnicy schodzili pod ziemię po drewnianych schodach, a bryły wyciągano na powierzchnię za pomocą kołowrotów "
        "poruszanych przez konie. W opuszczonych komorach zachowały się rzeźby i kaplice wykute w solnych ścianach, "
        "które dzisiaj oglądają turyści z całego świata.",
    ),
    "cs": (
        "Čím se liší spodní kvašení piva od svrchního?",
        "Pivo se vaří ze sladu, chmele, vody a kvasnic. Rozemletý slad se nejprve smíchá s teplou vodou, aby se škrob "
        "přeměnil na cukr, a vzniklá sladina se potom vaří s chmelem, který jí dodá hořkost. Při spodním kvašení "
        "pracují kvasnice pomalu v chladu kolem deseti stupňů a usazují se na dně kádě. Při svrchním kvašení je "
        "teplota vyšší, proces trvá jen několik dní a pivo má výraznější ovocnou vůni. Ležák pak ještě týdny zraje ve "
        "sklepě.",
    ),
    "ru": (
        "Почему дома на вечной мерзлоте строят на сваях?",
        "Вечной мерзлотой называют грунт, который не оттаивает по меньшей мере два года подряд. Летом прогревается "
        "только верхний слой толщиной от нескольких десятков сантиметров до двух-трёх метров. Тепло жилого дома "
        "растопило бы лёд под фундаментом, и здание начало бы неравномерно оседать, поэтому его ставят на сваи и "
        "оставляют под полом проветриваемое пространство. Зимой холодный ветер свободно проходит под домом и не даёт "
        "грунту нагреться. Трубы в таких городах прокладывают над землёй.",
    ),
    "uk": (
        "Як бджоли перетворюють нектар на мед?",
        "Бджоли збирають нектар із квітів і приносять його до вулика в медовому зобику. Там робочі бджоли багато "
        "разів передають краплю одна одній, додаючи ферменти, які розщеплюють складний цукор на прості. Потім рідину "
        "розкладають у комірки стільника й обвівають крилами, доки в ній не залишиться менше двадцяти відсотків води. "
        "Дозрілий мед запечатують воском, і в такому вигляді він може зберігатися роками. Пасічник забирає лише "
        "надлишок, щоб родина мала чим живитися взимку.",
    ),
    "bg": (
        "Кога се берат розите за производство на розово масло?",
        "Маслодайната роза цъфти през май и началото на юни, а цветовете ѝ се берат на ръка рано сутрин, преди "
        "слънцето да изпари росата. По това време в листенцата има най-много етерично масло. Набраният цвят се "
        "откарва веднага в дестилерията, където се вари с вода, а парата се охлажда и събира. За един килограм масло "
        "са нужни около три и половина тона цвят, затова то е сред най-скъпите суровини в парфюмерията.",
    ),
    "sr-Cyrl": (
        "Зашто бродови на великим рекама пролазе кроз преводнице?",
        "На местима где је река преграђена браном, ниво воде испред и иза ње може да се разликује и за тридесетак "
        "метара. Да би бродови савладали ту разлику, поред бране се гради преводница, велика комора са капијама на "
        "оба краја. Када брод уђе, капије се затворе и комора се пуни или празни док се вода не изједначи са нивоом "
        "на другој страни. Цео поступак траје мање од једног сата. Без преводница не би било непрекидне пловидбе од "
        "унутрашњости континента до мора.",
    ),
    "ro": (
        "Cum apar cariile dentare?",
        "Cariile dentare apar atunci când bacteriile din gură transformă zahărul în acizi care atacă smalțul. La "
        "început se vede doar o pată albă, iar procesul poate fi încă oprit prin fluor și printr-o igienă bună. Dacă "
        "nu este tratată, leziunea ajunge la dentină și apoi la nerv, iar durerea devine puternică. Medicii recomandă "
        "periajul de două ori pe zi, folosirea aței dentare și un control la fiecare șase luni, chiar dacă nimic nu "
        "doare.",
    ),
    "hu": (
        "Hogyan készül az őrölt fűszerpaprika?",
        "A fűszerpaprikát ősszel szedik, amikor a termés már egészen piros. A hagyományos módszer szerint a "
        "hüvelyeket zsinórra fűzik, és hetekig az eresz alatt szárítják, közben tovább érnek és színesednek. A "
        "teljesen száraz paprikát kicsumázzák, majd kövek vagy hengerek között finomra őrlik; az ilyenkor keletkező "
        "hő oldja ki a magok olaját, amely a port fényessé teszi. A csípősséget az erek adják, ezért az édes "
        "paprikához ezeket gondosan eltávolítják. A kész őrleményt fénytől védve, hűvös helyen kell tárolni.",
    ),
    "fi": (
        "Milloin järven jää kantaa kävelijän?",
        "Järvet jäätyvät Suomessa pohjoisesta alkaen, tavallisesti loka- ja joulukuun välillä. Ensin jäähtyy koko "
        "vesimassa noin neljään asteeseen, minkä jälkeen kylmin vesi jää pintaan ja jäätyy tyynenä pakkasyönä. "
        "Kävelijän kantaa vähintään viiden senttimetrin paksuinen teräsjää, mutta virtapaikoissa, siltojen alla ja "
        "kaislikon reunassa jää on usein paljon heikompaa. Liikkujan kannattaa pitää mukana jäänaskaleita ja kertoa "
        "reittinsä jollekulle. Keväällä jää haurastuu auringossa, vaikka se olisi vielä paksua eikä siihen olisi "
        "tullut yhtään railoa.",
    ),
    "tr": (
        "Depreme dayanıklı bir binada hangi özellikler aranır?",
        "Depreme dayanıklı bir bina, sarsıntı sırasında yıkılmadan esneyebilecek biçimde tasarlanır. Bunun için önce "
        "zeminin yapısı incelenir, ardından kolonlar ve perde duvarlar planda olabildiğince simetrik yerleştirilir. "
        "Betonun dayanımı kadar demir donatının doğru bağlanması da önemlidir; sık aralıklı etriyeler kolonların "
        "ezilmesini önler. Zemin katta dükkân açmak için duvarların kaldırılması binayı tehlikeli ölçüde zayıflatır. "
        "Yönetmelik, eski yapıların da uzmanlarca incelenmesini ve gerekirse hiç vakit kaybetmeden güçlendirilmesini "
        "öngörür.",
    ),
    "el": (
        "Τι σημαίνει εξαιρετικό παρθένο ελαιόλαδο;",
        "Οι ελιές μαζεύονται από τον Οκτώβριο ως τον Ιανουάριο, με τα χέρια ή με ραβδιστικά, και μεταφέρονται το "
        "συντομότερο στο ελαιοτριβείο. Εκεί πλένονται, αλέθονται και μαλάσσονται σε χαμηλή θερμοκρασία, ώστε το λάδι "
        "να ξεχωρίσει από το νερό και τον πολτό. Εξαιρετικό παρθένο ονομάζεται το λάδι που παράγεται μόνο με μηχανικά "
        "μέσα, έχει οξύτητα έως 0,8 τοις εκατό και δεν παρουσιάζει κανένα ελάττωμα στη γεύση. Φυλάσσεται σε σκούρα "
        "δοχεία, μακριά από τη ζέστη και το φως.",
    ),
    "hy": (
        "Ինչո՞ւ է տուֆը հարմար շինանյութ։",
        "Տուֆը հրաբխային ծագման քար է, որը գոյացել է մոխրի և տաք գազերի խառնուրդի սառչելուց հետո։ Այն թեթև է, "
        "հեշտությամբ է մշակվում և լավ է պահպանում ջերմությունը, այդ պատճառով դարեր շարունակ օգտագործվել է տների, "
        "կամուրջների ու եկեղեցիների կառուցման համար։ Քարի գույնը կախված է նրա բաղադրությունից և լինում է վարդագույն, "
        "նարնջագույն, շագանակագույն կամ սև։ Վարպետները քարը կտրում են հանքավայրում, իսկ զարդաքանդակները փորագրում են "
        "արդեն շինհրապարակում։ Ժամանակի ընթացքում տուֆի մակերեսը կարծրանում է և դառնում ավելի դիմացկուն։",
    ),
    "ka": (
        "რატომ ფლავენ ქვევრს მიწაში?",
        "ქვევრი თიხის დიდი ჭურჭელია, რომელშიც ღვინოს აყენებენ და ინახავენ. მას ყელამდე მიწაში ფლავენ, რადგან იქ "
        "ტემპერატურა მთელი წლის განმავლობაში თითქმის უცვლელია და დუღილი თანაბრად მიმდინარეობს. ყურძნის წვენს ხშირად "
        "კანთან და კლერტთან ერთად ასხამენ, ამიტომ თეთრი ღვინოც კი ქარვისფერი და მწკლარტე ხდება. დუღილის დამთავრების "
        "შემდეგ ქვევრს ქვის სახურავით ხურავენ და თიხით ან ცვილით ლუქავენ. გაზაფხულზე ღვინოს ხსნიან, სხვა ჭურჭელში "
        "გადაიღებენ და ცარიელ ქვევრს გულდასმით რეცხავენ.",
    ),
    "am": (
        "ጤፍ ለምን በገበሬዎች ዘንድ ይመረጣል?",
        "ጤፍ በጣም ትንሽ ፍሬ ያለው እህል ሲሆን በኢትዮጵያ ደጋማ አካባቢዎች ለብዙ ሺህ ዓመታት ሲመረት ቆይቷል። ሰብሉ ድርቅንም ሆነ ውሃ የሚተኛበትን መሬት ስለሚቋቋምና በአጭር "
        "ጊዜ ስለሚደርስ አርሶ አደሮች ይወዱታል። ዱቄቱ ከውሃና ከእርሾ ጋር ተቦክቶ ለሁለት ወይም ለሦስት ቀናት ይቀመጣል፤ ከዚያም በምጣድ ላይ እንጀራ ሆኖ ይጋገራል። ጤፍ "
        "በብረትና በካልሲየም የበለጸገ ሲሆን ግሉተን ስለሌለው ስንዴ ለማይስማማቸው ሰዎችም ተስማሚ ነው። ገለባው ለከብቶች መኖና ለቤት ግድግዳ ጭቃ ማጠናከሪያ ያገለግላል።",
    ),
    "ar": (
        "فيم كان يُستخدم الأسطرلاب؟",
        "الأسطرلاب آلة فلكية قديمة تمثل قبة السماء على قرص مستوٍ من النحاس. استعمله العلماء والبحارة لقياس ارتفاع "
        "الشمس والنجوم فوق الأفق، ومن ذلك كانوا يعرفون الوقت في الليل والنهار واتجاه القبلة ومواعيد الصلاة. يتألف "
        "الجهاز من صفائح محفورة تناسب خطوط عرض مختلفة، وفوقها شبكة دوارة تشير أطرافها إلى مواقع أشهر النجوم. وقد أدخل "
        "الصناع في بغداد ودمشق وقرطبة تحسينات كثيرة عليه قبل أن تحل محله الساعات الآلية وأجهزة الرصد الحديثة.",
    ),
    "fa": (
        "قنات چگونه آب را بدون پمپ به سطح زمین می‌رساند؟",
        "قنات راهی کهن برای رساندن آب زیرزمینی به دشت‌های خشک است. مقنّی‌ها نخست در دامنهٔ کوه چاهی عمیق به نام "
        "مادرچاه می‌کنند تا به لایهٔ آب‌دار برسند. سپس دالانی با شیب بسیار ملایم از آنجا تا پایین دشت حفر می‌شود و آب "
        "تنها با نیروی گرانش در آن جریان می‌یابد. در طول مسیر، چاه‌های دیگری برای بیرون آوردن خاک و رساندن هوا ساخته "
        "می‌شود. چون آب زیر زمین حرکت می‌کند، تبخیر آن ناچیز است و کشاورزان می‌توانند سهم هر روز خود را به‌نوبت "
        "بردارند.",
    ),
    "he": (
        "מה ההבדל בין הצפנה סימטרית להצפנה אסימטרית?",
        "הצפנה הופכת הודעה קריאה לרצף סימנים שרק מי שמחזיק במפתח יכול לפענח. בהצפנה סימטרית משתמשים באותו מפתח גם "
        "להצפנה וגם לפענוח, ולכן שני הצדדים חייבים להעביר אותו ביניהם מראש בדרך בטוחה. בהצפנה אסימטרית לכל משתמש יש "
        "זוג מפתחות: מפתח ציבורי שכל אחד יכול לראות, ומפתח פרטי שנשמר בסוד. השיטה השנייה איטית יותר, ולכן דפדפנים "
        "משתמשים בה רק כדי להסכים על מפתח משותף, ומשם והלאה התקשורת מוצפנת בשיטה המהירה.",
    ),
    "ur": (
        "کرکٹ میں ایل بی ڈبلیو آؤٹ کا فیصلہ کیسے ہوتا ہے؟",
        "کرکٹ میں بلے باز کو کئی طریقوں سے آؤٹ کیا جا سکتا ہے، جن میں بولڈ، کیچ اور رن آؤٹ سب سے عام ہیں۔ ایل بی "
        "ڈبلیو اس وقت دیا جاتا ہے جب گیند بلے کو چھوئے بغیر کھلاڑی کے پیڈ سے ٹکرائے اور امپائر کی رائے میں وہ سیدھی "
        "وکٹوں میں جا رہی ہو۔ اگر گیند لیگ اسٹمپ کے باہر ٹپا کھائے تو بلے باز کو آؤٹ نہیں دیا جا سکتا۔ بڑے مقابلوں "
        "میں کپتان نظرثانی کی درخواست کر سکتا ہے، اور تیسرا امپائر ویڈیو دیکھ کر آخری فیصلہ سناتا ہے۔",
    ),
    "hi": (
        "रेल टिकट की प्रतीक्षा सूची में यात्री का स्थान कब पक्का होता है?",
        "लंबी दूरी की रेलगाड़ियों में सीट का आरक्षण कई सप्ताह पहले खुल जाता है। जब सारी सीटें भर जाती हैं, तब नए "
        "यात्रियों को प्रतीक्षा सूची में रखा जाता है और हर टिकट को एक क्रमांक मिलता है। किसी यात्री के टिकट रद्द "
        "कराने पर सूची आगे खिसकती है और अगले व्यक्ति का स्थान पक्का हो जाता है। गाड़ी छूटने से कुछ घंटे पहले अंतिम "
        "चार्ट बनता है, जिसमें डिब्बे और बर्थ की संख्या लिखी होती है। जिनका नाम तब भी सूची में रह जाता है, उनका "
        "ऑनलाइन टिकट अपने आप रद्द होकर पैसा लौट आता है।",
    ),
    "mr": (
        "हवामान खाते पावसाचा अंदाज कशाच्या आधारे देते?",
        "महाराष्ट्रात मोसमी पाऊस साधारणपणे जूनच्या दुसऱ्या आठवड्यात सुरू होतो आणि सप्टेंबरनंतर परततो. हवामान खाते "
        "समुद्राच्या पृष्ठभागाचे तापमान, वाऱ्यांची दिशा, हवेचा दाब आणि उपग्रहांची छायाचित्रे यांच्या आधारे पावसाचा "
        "अंदाज तयार करते. पश्चिम घाटात ढग अडल्यामुळे कोकणात मुसळधार पाऊस पडतो, तर डोंगरांच्या पूर्वेकडील जिल्हे कोरडे "
        "राहतात. पेरणीची योग्य वेळ ठरवण्यासाठी शेतकरी या अंदाजाकडे लक्ष ठेवून असतात. पहिल्या सरीनंतर मोठा खंड पडला तर "
        "दुबार पेरणीचे संकट ओढवते.",
    ),
    "bn": (
        "ডেঙ্গু জ্বর প্রতিরোধের জন্য কী করা উচিত?",
        "ডেঙ্গু একটি ভাইরাসজনিত রোগ, যা এডিস মশার কামড়ে ছড়ায়। এই মশা সাধারণত দিনের বেলায় কামড়ায় এবং ফুলের টব, "
        "পুরোনো টায়ার বা ছাদের জমে থাকা পরিষ্কার পানিতে ডিম পাড়ে। তাই প্রতিরোধের প্রধান উপায় হলো কোথাও তিন দিনের "
        "বেশি পানি জমতে না দেওয়া এবং ঘুমানোর সময় মশারি ব্যবহার করা। রোগীর তীব্র জ্বর, মাথাব্যথা ও শরীরে লালচে দানা "
        "দেখা দিতে পারে। এ অবস্থায় প্রচুর তরল খাবার খেতে হবে এবং চিকিৎসকের পরামর্শ ছাড়া ব্যথার ওষুধ খাওয়া যাবে না।",
    ),
    "gu": (
        "બાંધી મુદતની થાપણ વહેલી ઉપાડીએ તો શું થાય?",
        "બાંધી મુદતની થાપણમાં ગ્રાહક પોતાની રકમ નક્કી કરેલા સમય માટે બેંકમાં મૂકે છે અને બદલામાં બચત ખાતા કરતાં વધારે "
        "વ્યાજ મેળવે છે. વ્યાજનો દર શરૂઆતમાં જ નક્કી થઈ જાય છે, એટલે બજારમાં દર ઘટે તો પણ થાપણદારને નુકસાન થતું નથી. "
        "જો ગ્રાહક પાકતી મુદત પહેલાં પૈસા ઉપાડી લે, તો બેંક થોડો દંડ કાપે છે અને વ્યાજ પણ ઓછું ચૂકવે છે. વરિષ્ઠ "
        "નાગરિકોને સામાન્ય રીતે અડધો ટકો વધારે વ્યાજ આપવામાં આવે છે.",
    ),
    "te": (
        "వరి నాట్లు వేసే ముందు పొలాన్ని ఎలా సిద్ధం చేస్తారు?",
        "వరి పంటకు ఇతర ధాన్యాల కంటే నీరు ఎక్కువగా కావాలి కాబట్టి రైతులు సాధారణంగా వర్షాకాలంలో సాగు మొదలుపెడతారు. "
        "ముందుగా విత్తనాలను చిన్న మడిలో చల్లి నారు పెంచుతారు. ఈలోగా ప్రధాన పొలాన్ని రెండు మూడు సార్లు దున్ని, నీరు "
        "నిలిపి, బురదగా చేసి సమానంగా చదును చేస్తారు. నారు ఇరవై ఐదు రోజుల వయసుకు వచ్చాక దాన్ని జాగ్రత్తగా పీకి, వేర్లు "
        "ఆరకముందే వరుసల్లో నాటుతారు. కోతకు పది రోజుల ముందు పొలంలోని నీటిని తీసివేస్తే గింజలు బాగా గట్టిపడతాయి, కోయడం "
        "కూడా సులభమవుతుంది.",
    ),
    "kn": (
        "ಸೌರ ಫಲಕಗಳನ್ನು ಯಾವ ದಿಕ್ಕಿಗೆ ಮುಖ ಮಾಡಿ ಅಳವಡಿಸಬೇಕು?",
        "ಮನೆಯ ಛಾವಣಿಯ ಮೇಲೆ ಅಳವಡಿಸುವ ಸೌರ ಫಲಕಗಳು ಸೂರ್ಯನ ಬೆಳಕನ್ನು ನೇರವಾಗಿ ವಿದ್ಯುತ್ತಾಗಿ ಪರಿವರ್ತಿಸುತ್ತವೆ. ಭಾರತದಲ್ಲಿ "
        "ಅವುಗಳನ್ನು ದಕ್ಷಿಣ ದಿಕ್ಕಿಗೆ ಮುಖ ಮಾಡಿ, ಸ್ವಲ್ಪ ಓರೆಯಾಗಿ ನಿಲ್ಲಿಸಿದರೆ ವರ್ಷವಿಡೀ ಹೆಚ್ಚು ವಿದ್ಯುತ್ ಸಿಗುತ್ತದೆ. ಮರ ಅಥವಾ "
        "ಪಕ್ಕದ ಕಟ್ಟಡದ ನೆರಳು ಒಂದು ಫಲಕದ ಮೇಲೆ ಬಿದ್ದರೂ ಇಡೀ ಸಾಲಿನ ಉತ್ಪಾದನೆ ಕಡಿಮೆಯಾಗುತ್ತದೆ. ಫಲಕಗಳ ಮೇಲಿನ ಧೂಳು ಮತ್ತು "
        "ಎಲೆಗಳನ್ನು ತಿಂಗಳಿಗೆ ಒಮ್ಮೆಯಾದರೂ ಶುದ್ಧ ನೀರಿನಿಂದ ತೊಳೆಯುವುದು ಒಳ್ಳೆಯದು. ಮನೆಯಲ್ಲಿ ಬಳಸದೆ ಉಳಿದ ವಿದ್ಯುತ್ತನ್ನು ಗ್ರಾಹಕರು "
        "ಮೀಟರ್ ಮೂಲಕ ವಿದ್ಯುತ್ ಕಂಪನಿಗೆ ಮಾರಾಟ ಮಾಡಿ ಹಣ ಪಡೆಯಬಹುದು.",
    ),
    "ta": (
        "கடல் ஆமைகள் முட்டையிட ஏன் கரைக்கு வருகின்றன?",
        "கடல் ஆமைகள் தங்கள் வாழ்நாளின் பெரும்பகுதியைக் கடலில் கழித்தாலும், முட்டையிட மணல் நிறைந்த கரைக்கு வருகின்றன, "
        "ஏனெனில் முட்டைகள் வளர வெப்பமும் காற்றும் தேவை. பெண் ஆமை இரவில் குழி தோண்டி, நூறு முட்டைகள் வரை இட்டு, மணலால் "
        "மூடிவிட்டுத் திரும்பிச் செல்லும். சுமார் ஐம்பது நாட்களில் குஞ்சுகள் வெளிவந்து, நிலவொளி படும் கடலை நோக்கி "
        "நகரும். கரையோர மின்விளக்குகள் அவற்றைத் திசைதிருப்புவதால், பல கிராமங்களில் தன்னார்வலர்கள் முட்டைகளைப் "
        "பாதுகாப்பான இடத்தில் புதைத்துக் காவல் காக்கிறார்கள். இதனால் ஒவ்வோர் ஆண்டும் அதிகமான குஞ்சுகள் பத்திரமாகக் "
        "கடலை அடைகின்றன.",
    ),
    "ml": (
        "കുരുമുളക് കറുത്ത നിറമാകുന്നത് എങ്ങനെ?",
        "കുരുമുളക് ധാരാളം മഴയും തണലും ഇഷ്ടപ്പെടുന്ന, മരങ്ങളിൽ പടർന്നു വളരുന്ന ഒരു വള്ളിച്ചെടിയുടെ കായയാണ്. കായ്കൾ "
        "പൂർണ്ണമായി പഴുക്കുന്നതിനു മുമ്പ്, തിരിയിലെ ഒന്നോ രണ്ടോ മണികൾ ചുവക്കുമ്പോൾ, അവ പറിച്ചെടുക്കുന്നു. പിന്നീട് "
        "മണികൾ കൈകൊണ്ടോ യന്ത്രം ഉപയോഗിച്ചോ വേർപെടുത്തി ദിവസങ്ങളോളം നല്ല വെയിലത്ത് ഉണക്കുമ്പോൾ തൊലി പതുക്കെ ചുളുങ്ങി "
        "കറുത്ത നിറമാകുന്നു. പഴുത്ത കായ്കൾ വെള്ളത്തിൽ കുതിർത്ത് തൊലി നീക്കിയ ശേഷം ഉണക്കിയാൽ വെള്ളക്കുരുമുളക് "
        "ലഭിക്കും. നൂറ്റാണ്ടുകൾക്കു മുമ്പ് അറബികളും യൂറോപ്യന്മാരും മലബാർ തീരത്തേക്കു കപ്പലോടിച്ചു വന്നത് പ്രധാനമായും "
        "ഈ വിലപിടിച്ച സുഗന്ധവ്യഞ്ജനം തേടിയായിരുന്നു.",
    ),
    "th": (
        "น้ำปลาทำมาจากอะไร",
        "น้ำปลาเป็นเครื่องปรุงรสเค็มที่ทำจากปลาทะเลตัวเล็ก เช่น ปลากะตัก หมักกับเกลือในอัตราส่วนประมาณสามต่อหนึ่ง "
        "ผู้ผลิตจะเรียงปลาและเกลือสลับชั้นในถังหรือบ่อซีเมนต์ แล้วปิดทับด้วยไม้ไผ่ขัดแตะเพื่อไม่ให้ปลาลอยขึ้นมา "
        "ระหว่างการหมักซึ่งใช้เวลาสิบสองถึงสิบแปดเดือน เอนไซม์จะย่อยโปรตีนจนกลายเป็นน้ำสีน้ำตาลใส "
        "น้ำแรกที่กรองออกมาถือว่ามีคุณภาพดีที่สุดและมีกลิ่นหอม "
        "ส่วนกากที่เหลือนำไปเติมน้ำเกลือแล้วหมักต่อเพื่อทำน้ำปลาเกรดรอง",
    ),
    "km": (
        "ហេតុអ្វីបានជាទន្លេសាបហូរបញ្ច្រាសទិស?",
        "ទន្លេសាបជាទន្លេដែលប្តូរទិសដៅហូរពីរដងក្នុងមួយឆ្នាំ។ នៅរដូវវស្សា ទឹកទន្លេមេគង្គឡើងខ្ពស់ខ្លាំង "
        "ហើយរុញទឹកឲ្យហូរបញ្ច្រាសចូលទៅក្នុងបឹង ធ្វើឲ្យផ្ទៃបឹងរីកធំជាងរដូវប្រាំងច្រើនដង។ "
        "ព្រៃលិចទឹកនៅជុំវិញបឹងក្លាយជាជម្រក និងកន្លែងពងកូនរបស់ត្រីរាប់រយប្រភេទ។ លុះដល់ខែវិច្ឆិកា ទឹកមេគង្គស្រកចុះ "
        "ហើយទឹកបឹងក៏ហូរត្រឡប់ទៅសមុទ្រវិញ។ អ្នកនេសាទរស់នៅក្នុងផ្ទះអណ្តែតទឹក ដែលអាចផ្លាស់ទីតាមកម្រិតទឹក។",
    ),
    "vi": (
        "Người ngồi sau xe máy không đội mũ bảo hiểm thì ai bị phạt?",
        "Theo luật giao thông đường bộ, người điều khiển và người ngồi sau xe máy đều phải đội mũ bảo hiểm và cài "
        "quai đúng cách. Nếu người ngồi sau không đội mũ, cả người đó lẫn người lái đều có thể bị xử phạt tiền. Trẻ "
        "em dưới sáu tuổi được miễn, nhưng các bác sĩ vẫn khuyên cha mẹ chọn cho con loại mũ vừa đầu và có lớp xốp đủ "
        "dày. Một chiếc mũ đã bị va đập mạnh nên được thay mới, vì vết nứt bên trong thường không nhìn thấy bằng mắt "
        "thường.",
    ),
    "fil": (
        "Ano ang ibig sabihin ng bilang sa babala ng bagyo?",
        "Kapag may papalapit na bagyo, naglalabas ang kawanihan ng panahon ng mga babala na may bilang mula isa "
        "hanggang lima. Ang bilang ay tumutukoy sa lakas ng hanging inaasahan sa isang lalawigan sa loob ng susunod "
        "na mga oras. Sa unang antas ay karaniwang sinususpinde ang klase ng maliliit na bata, samantalang sa ikatlo "
        "pataas ay pinapayuhan ang lahat na manatili sa loob ng matibay na gusali. Ang mga nakatira sa tabing-dagat "
        "at sa paanan ng bundok ay dapat lumikas nang maaga dahil sa panganib ng daluyong at pagguho ng lupa.",
    ),
    "id": (
        "Apa tanda-tanda gunung berapi akan meletus?",
        "Sebelum sebuah gunung berapi meletus, magma bergerak naik dan mendesak batuan di sekitarnya sehingga terjadi "
        "banyak gempa kecil. Alat pengukur di lereng juga mencatat tanah yang menggembung, suhu kawah yang meningkat, "
        "dan gas belerang yang keluar lebih banyak. Berdasarkan tanda-tanda itu, petugas pos pengamatan menaikkan "
        "status dari normal menjadi waspada, siaga, lalu awas. Pada tingkat tertinggi, penduduk di zona bahaya wajib "
        "mengungsi. Abu letusan dapat mengganggu penerbangan, tetapi setelah melapuk ia menyuburkan sawah dan kebun "
        "di sekitarnya.",
    ),
    "sw": (
        "Kwa nini wapandaji wa mlima mrefu hupanda polepole?",
        "Hewa kwenye kilele cha mlima mrefu ina oksijeni kidogo kuliko hewa ya pwani. Mtu akipanda haraka mno anaweza "
        "kuumwa kichwa, kutapika na kukosa usingizi, kwa sababu mwili haujapata muda wa kuzoea hali hiyo. Ndiyo maana "
        "waongozaji hugawa safari katika siku sita au saba na kuwahimiza wageni watembee polepole na kunywa maji "
        "mengi. Wakati mwingine kundi hupanda juu mchana na kushuka kulala mahali pa chini zaidi. Dalili zikizidi, "
        "dawa bora kabisa ni kushuka mara moja.",
    ),
    "zh-Hans": (
        "高速列车为什么需要专用线路？",
        "高速列车的运行速度通常在每小时二百五十公里以上，因此对线路的要求比普通铁路严格得多。弯道半径必须足够大，"
        "坡度要平缓，轨道接缝被焊接成无缝钢轨，以减少震动和噪声。许多区段架设在桥梁上，这样既能节约土地，"
        "又能避免地面沉降造成的不平顺。信号不再依靠路边的灯光，而是直接显示在司机室的屏幕上。如果与货运列车混跑，"
        "速度差会降低整条线路的运力，所以不少国家都为高速列车修建专用线路。",
    ),
    "zh-Hant": (
        "晶圓廠的無塵室為什麼要控制濕度？",
        "積體電路是在矽晶圓上一層一層製作出來的，線寬只有頭髮直徑的數千分之一，任何一粒灰塵都可能讓整顆晶片報廢。"
        "因此工廠把生產區設計成無塵室，空氣從天花板的濾網垂直往下流，每分鐘更換好幾次。濕度同樣必須嚴格控制："
        "太乾容易產生靜電而損壞元件，太濕則會使光阻劑的附著力變差。工程師進入前要穿上連身的無塵衣，"
        "並通過吹風的緩衝間。製程用水也經過多道純化，幾乎不含任何離子。",
    ),
    "ja": (
        "味噌の色はなぜ濃くなるのですか。",
        "味噌は、蒸した大豆に麹と塩を混ぜ、数か月から数年かけて発酵させた調味料である。"
        "麹菌の酵素が大豆のたんぱく質をアミノ酸に、米や麦のでんぷんを糖に分解するため、うま味と甘みが生まれる。"
        "熟成が進むにつれて、アミノ酸と糖が反応して褐色の物質ができ、味噌の色は次第に濃くなる。"
        "この変化は温度が高いほど速いので、淡い色を保ちたいときは冷蔵庫に入れるとよい。地域によって米味噌、麦味噌、"
        "豆味噌などの違いがある。",
    ),
    "ko": (
        "잠들기 전에 휴대 전화를 보면 왜 잠이 잘 오지 않나요?",
        "사람의 몸은 빛의 양에 따라 하루의 리듬을 조절한다. 해가 지면 뇌에서 멜라토닌이라는 호르몬이 나와 체온이 조금 "
        "내려가고 졸음이 온다. 그런데 휴대 전화나 컴퓨터 화면의 푸른 빛은 낮과 비슷한 신호를 보내 이 호르몬의 분비를 "
        "늦추기 때문에 잠들기까지 시간이 더 걸린다. 전문가들은 잠자리에 들기 한 시간 전에는 화면을 끄고 방을 어둡고 "
        "서늘하게 유지하라고 권한다. 오후 늦게 마신 커피도 깊은 잠을 줄일 수 있으며, 주말에도 일정한 시각에 일어나는 "
        "것이 좋다.",
    ),
}

SPECIAL: tuple[str, ...] = (
    "",
    "?",
    "ok",
    "again again again again again again again again again again again again",
    "def median(values: list[float]) -> float:\n    ordered = sorted(values)\n    return ordered[len(ordered) // 2]",
    "SELECT city, AVG(price) AS mean_price FROM hotels WHERE stars >= 4 GROUP BY city ORDER BY mean_price DESC;",
    "| 2021-03-14 | Rotterdam | 17 crates | 4,250.00 | paid |",
    "Packing list:\n• passport and visa\n• rain jacket\n• first-aid kit (plasters, tweezers)\n• 2 × AA batteries",
    "Limits: https://docs.example.com/v2/search?q=rain&lang=pt#limits, or write to help-desk@example.com.",
    "12.5 kg; 3 × 10⁸ m/s; −40 °C = −40 °F; ½ cup (120 ml); ±0.05 mm; 19:45; £3,600; 64 GiB; pH 7.4",
    "🌧️ today, ☀️ tomorrow! 🎉🎂 from all of us 👨‍👩‍👧‍👦❤️",
    "WARNING: HIGH VOLTAGE. DO NOT OPEN THE CABINET BEFORE THE MAIN SWITCH IS OFF.",
    "明天的 meeting 改到 3 pm, bitte den Adapter mitbringen, спасибо 🙏 وشكراً للجميع",
)


def calibration_texts() -> list[str]:
    """Return what activation ranges are observed on: the even places of `PASSAGES` and `SPECIAL`, and longer texts.

    A longer text joins two passages (about 250 tokens), or four or five (480 to 670), each of another language.
    """
    pairs = list(PASSAGES.values())[::2]
    passages = [passage for _, passage in pairs]
    steps = (len(passages) // 2, len(passages) // 4)
    longer = [" ".join(passages[start::step]) for step in steps for start in range(step)]
    return [text for pair in pairs for text in pair] + list(SPECIAL[::2]) + longer


def held_out_pairs() -> list[tuple[str, str]]:
    """Return the (question, passage) of each language in an odd place of `PASSAGES`: never calibrated on."""
    return list(PASSAGES.values())[1::2]
